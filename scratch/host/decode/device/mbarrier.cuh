#pragma once
#include <sched.h>
namespace jax_baracuda {
static inline void mbarrier_init(uint32_t b,int n){ if(b%8||n!=1){printf("init\n");abort();} cta->tx=0;cta->pending=1;}
static inline void mbarrier_init_fence(){}
static inline void mbarrier_arrive_expect(uint32_t,int bytes){cta->tx.fetch_add(bytes);cta->pending.fetch_sub(1);}
static inline void mbarrier_wait(uint32_t,int){ long n=0; while(cta->pending.load()||cta->tx.load()){sched_yield(); if(++n>20000000){printf("hang tx %d\n",cta->tx.load());abort();}} }
}

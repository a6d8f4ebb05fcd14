#pragma once
namespace jax_baracuda {
static inline uint32_t shared_address(const void*p){ ptrdiff_t d=(const char*)p-(const char*)cta->base; if(d<0||d>=(ptrdiff_t)cta->bytes){printf("address\n");abort();} return d;}
static inline void cluster_arrive(){ if(arrived++){printf("arrived twice\n");abort();} }
static inline void cluster_arrive_relaxed(){cluster_arrive();}
static inline void cluster_wait(){ if(--arrived){printf("not arrived\n");abort();} pthread_barrier_wait(&cta->cluster->bar);}
static inline void cluster_sync(){cluster_arrive();cluster_wait();}
template<class V> static inline void store_remote(uint32_t a,int rank,V v){ Cta*c=cta->cluster->ctas.at(rank); if(a+sizeof(V)>c->bytes||a%sizeof(V)){printf("remote %u\n",a);abort();} memcpy((char*)c->base+a,&v,sizeof(v));}
}

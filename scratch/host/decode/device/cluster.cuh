#pragma once
namespace jax_baracuda {
static inline uint32_t shared_address(const void*p){ ptrdiff_t d=(const char*)p-(const char*)cta->base; if(d<0||d>=(ptrdiff_t)cta->bytes){printf("address\n");abort();} return d;}
static inline void announce_to_cluster(){ if(arrived++){printf("arrived twice\n");abort();} }
static inline void await_cluster(){ if(--arrived){printf("not arrived\n");abort();} pthread_barrier_wait(&cta->cluster->bar);}
static inline void cluster_sync(){announce_to_cluster();await_cluster();}
template<class V> static inline void send_remote(uint32_t a,V v,uint32_t,int rank){ Cta*c=cta->cluster->ctas.at(rank); if(a+sizeof(V)>c->bytes||a%sizeof(V)){printf("remote %u\n",a);abort();} if(c->left.load()){printf("sent to one that has left\n");abort();} memcpy((char*)c->base+a,&v,sizeof(v)); c->tx.fetch_sub((int)sizeof(v));}
}

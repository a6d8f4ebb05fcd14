#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cstdint>
#include <cmath>
#include <algorithm>
#include <vector>
#include <thread>
#include <random>
#include <memory>
#include <pthread.h>
#include <vector_types.h>
#include <vector_functions.h>
#undef __launch_bounds__
#undef __global__
#undef __device__
#undef __shared__
#undef __forceinline__
#undef __grid_constant__
#define __launch_bounds__(...)
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
using std::min; using std::max;
static inline unsigned min(unsigned a,int b){return std::min(a,(unsigned)b);}
static inline unsigned min(int a,unsigned b){return std::min((unsigned)a,b);}
static inline unsigned __umulhi(unsigned a,unsigned b){return (uint64_t(a)*b)>>32;}
struct Cta; struct Cluster{std::vector<Cta*> ctas; pthread_barrier_t bar;};
#include <atomic>
#define __CUDA_ARCH__ 900
static inline void __syncwarp(){}
struct Cta{uint4*base; size_t bytes; pthread_barrier_t bar; Cluster*cluster; std::atomic<int> tx{0},pending{1},alive{0},left{0};};
struct Warp{pthread_barrier_t bar; uint64_t slot[32];};
struct Dim{unsigned x;}; thread_local Dim threadIdx,blockIdx,blockDim; thread_local Cta*cta; thread_local Warp*warp_; thread_local int arrived=0;
static inline void __syncthreads(){pthread_barrier_wait(&cta->bar);}
template<class T,class F> T exchange(T x,F from){ int l=threadIdx.x%32; uint64_t u=0; memcpy(&u,&x,sizeof(T)); warp_->slot[l]=u; pthread_barrier_wait(&warp_->bar); T r=from(warp_->slot); pthread_barrier_wait(&warp_->bar); return r;}
template<class T> T get(uint64_t u){T r;memcpy(&r,&u,sizeof(T));return r;}
template<class T> T __shfl_sync(unsigned,T x,int i){return exchange(x,[&](uint64_t*s){return get<T>(s[i&31]);});}
template<class T> T __shfl_up_sync(unsigned,T x,int o){int l=threadIdx.x%32;return exchange(x,[&](uint64_t*s){return get<T>(s[l>=o?l-o:l]);});}
static inline unsigned __ballot_sync(unsigned,bool b){return exchange((uint32_t)b,[&](uint64_t*s){uint32_t r=0;for(int i=0;i<32;++i)r|=uint32_t(s[i]&1)<<i;return r;});}
static inline int __reduce_add_sync(unsigned,int x){return exchange(x,[&](uint64_t*s){int r=0;for(int i=0;i<32;++i)r+=get<int>(s[i]);return r;});}
static inline int __ffs(unsigned x){return __builtin_ffs(x);}
template<class T> T __ldg(const T*p){return *p;} template<class T> T __ldcg(const T*p){return *p;}
static inline float __fdividef(float a,float b){return a/b;}
#include "device/cluster.cuh"
#include "device/memory.cuh"
#include "decode/kernel.cuh"
#include "decode/combine.cuh"
using namespace jax_baracuda;
struct FakeTile{ using Element=float; static int g_dim; static constexpr int kDimTile=64,kHeadTile=4,kTokens=16; static constexpr bool kVector=true;
 static int query_index(int h,int c){return h*kDimTile+c*4;} static constexpr int query_word(int w){return w;}
 const float*k[16],*v[16],*vn[16]; float s[16][4],m[4],sum[4],o[4][64]; int kl;
 FakeTile(){reset();} void reset(){for(int h=0;h<4;++h){m[h]=-INFINITY;sum[h]=0;for(auto&x:o[h])x=0;}}
 template<class S> void load_keys(const DecodeParams&p,const S&src,int token,int limit){for(int i=0;i<16;++i){auto f=src.find(i);k[i]=token+i<limit?(const float*)p.key+src.offset(p,f):nullptr;}}
 template<class S> void load_values(const DecodeParams&p,const S&src,int token,int limit){for(int i=0;i<16;++i){auto f=src.find(i);v[i]=token+i<limit?(const float*)p.value+src.offset(p,f):nullptr;}}
 int dim=0; void multiply_keys(const uint4*q){const float*Q=(const float*)q;for(int i=0;i<16;++i)for(int h=0;h<4;++h){float a=0;if(k[i])for(int d=0;d<g_dim;++d)a+=Q[h*64+d]*k[i][d];s[i][h]=a;}}
 void update_softmax(const DecodeParams&p,const float*,int token,int limit,int){for(int h=0;h<4;++h){float mx=m[h];for(int i=0;i<16;++i){s[i][h]=token+i<limit?s[i][h]*p.outer_scale:-INFINITY;mx=fmaxf(mx,s[i][h]);}float b=mx==-INFINITY?0:mx,c=exp2f(m[h]-b);m[h]=mx;sum[h]*=c;for(auto&x:o[h])x*=c;for(int i=0;i<16;++i){s[i][h]=exp2f(s[i][h]-b);sum[h]+=s[i][h];}}}
 void multiply_values(){for(int i=0;i<16;++i)if(v[i])for(int h=0;h<4;++h)for(int d=0;d<g_dim;++d)o[h][d]+=s[i][h]*v[i][d];}
 void store(float*out,float*st,int heads){ if(threadIdx.x%32)return; for(int h=0;h<4&&h<heads;++h){((float2*)st)[h]=make_float2(m[h],sum[h]);memcpy(out+h*68,o[h],256);}}
 };
int FakeTile::g_dim;
unsigned argc_seed=23; std::mt19937 rng(argc_seed); int R(int a,int b){return a+(int)(rng()%(unsigned)(b-a+1));} float N(){return (int(rng()%2001)-1000)/700.0f;}
template<class K> void launch(int64_t ctas,int threads,int csize,size_t bytes,K kernel){
 for(int64_t c0=0;c0<ctas;c0+=csize){ Cluster cl; pthread_barrier_init(&cl.bar,0,threads*csize); std::vector<std::unique_ptr<Cta>> cs; std::vector<std::vector<uint4>> mem(csize); 
  for(int i=0;i<csize;++i){mem[i].assign(bytes/16+2,uint4{0x7fc00000,0x7fc00000,0x7fc00000,0x7fc00000});auto c=std::make_unique<Cta>();c->base=mem[i].data();c->bytes=bytes;pthread_barrier_init(&c->bar,0,threads);c->cluster=&cl;cl.ctas.push_back(c.get());cs.push_back(std::move(c));}
  std::vector<std::unique_ptr<Warp>> ws; for(int i=0;i<csize*threads/32;++i){ws.push_back(std::make_unique<Warp>());pthread_barrier_init(&ws.back()->bar,0,32);}
  std::vector<std::thread> ts; for(int i=0;i<csize;++i)for(int t=0;t<threads;++t)ts.emplace_back([&,i,t]{threadIdx={unsigned(t)};blockIdx={unsigned(c0+i)};blockDim={unsigned(threads)};cta=cs[i].get();warp_=ws[(i*threads+t)/32].get();arrived=0;cta->alive++;kernel(); if(--cta->alive==0&&0)cta->left=1; if(arrived){printf("left arrived\n");abort();}});
  for(auto&t:ts)t.join(); for(int i=0;i<csize;++i) if(memcmp(&mem[i][(bytes+15)/16],"\0\0\xc0\x7f",4)){printf("overrun\n");abort();} }
}
long nstream=0,ncl=0,nwide=0,nfixed=0;
bool test(){ DecodeShape s; s.dtype=DType::kF32; s.paged=R(0,1); s.batch=R(0,1)?R(1,2):R(0,2)?R(1,5):R(30,36); s.kv_heads=R(1,3); s.group=R(1,6); s.head_dim=4*R(1,16); int page=R(1,9); 
 int cap=s.batch>8?R(1,100):R(1,400); bool lens=s.paged||!R(0,2); s.num_splits=R(0,2)?0:R(0,1)?2:R(1,5); s.uneven_lengths=lens&&s.batch>1;
 DecodeDevice d; d.sms=R(1,6); d.ctas_per_sm=R(1,3); d.pairs=R(0,3)?100:0; if(R(0,3)){d.wide_cluster=R(0,1)?4:8;d.wide_clusters=100;} if(s.batch*s.kv_heads*16>d.sms*100)d.sms=R(1,8);
 std::vector<int> len(s.batch,cap); if(lens)for(auto&x:len)x=R(0,5)?R(0,cap):R(-2,cap+9);
 int B=s.batch,Hk=s.kv_heads,G=s.group,D=s.head_dim; FakeTile::g_dim=D; bool nhd=R(0,1);
 // store
 std::vector<int> indptr{R(0,2)},idx,last; int P=0; std::vector<int> eff(B);
 if(s.paged){ for(int i=0;i<indptr[0];++i)idx.push_back(-7); for(int b=0;b<B;++b){int n=std::max(0,std::min(len[b],cap));int pg=(n+page-1)/page; if(n%page==0&&R(0,1))pg++; for(int i=0;i<pg;++i)idx.push_back(P++); indptr.push_back(indptr.back()+pg); last.push_back(pg==0?R(-1,page):n-(pg-1)*page); eff[b]=n;} P++; idx.push_back(99999);
   std::vector<int> perm(P);for(int i=0;i<P;++i)perm[i]=i;std::shuffle(perm.begin(),perm.end(),rng);for(auto&x:idx)if(x>=0&&x<P)x=perm[x]; s.kv_capacity=(int)idx.size()*page; }
 else {s.kv_capacity=cap;for(int b=0;b<B;++b)eff[b]=std::max(0,std::min(len[b],cap));}
 int64_t rows=s.paged?int64_t(P)*page:int64_t(B)*cap; std::vector<float> K(rows*Hk*D,NAN),V(rows*Hk*D,NAN),Q(B*Hk*G*D),O(B*Hk*G*D,NAN),L(B*Hk*G,NAN); for(auto&x:Q)x=N();
 auto at=[&](int b,int h,int j)->int64_t{ if(s.paged){int64_t pg=idx[indptr[b]+j/page],r=j%page;return (nhd?(pg*page+r)*Hk+h:(pg*Hk+h)*page+r)*D;} return (nhd?(int64_t(b)*cap+j)*Hk+h:(int64_t(b)*Hk+h)*cap+j)*D;};
 for(int b=0;b<B;++b)for(int h=0;h<Hk;++h)for(int j=0;j<eff[b];++j)for(int i=0;i<D;++i){K[at(b,h,j)+i]=N();V[at(b,h,j)+i]=N();}
 DecodeConfig c=choose_layout(s); if(c.dim_tile!=64){return true;} 
 choose_schedule(s,d,R(0,3)?1000000:R(0,20),c);
 std::vector<float> W(c.partial_slots*partial_bytes(s,c)/4+8,NAN);
 DecodeParams p={}; p.query=Q.data();p.key=K.data();p.value=V.data();p.kv_lengths=s.paged?last.data():lens?len.data():nullptr;p.out=O.data();p.lse=L.data(); p.slot_heads=partial_heads(s,c); p.partial_out=W.data(); p.partial_stats=W.data()+c.partial_slots*p.slot_heads*D;
 if(s.paged){p.pages.indices=idx.data();p.pages.indptr=indptr.data();p.pages.last_page_len=last.data();p.pages.entries=idx.size();p.pages.pages=P;p.pages.max_length=s.kv_capacity;p.pages.page_size=Divisor(page);p.pages.page_stride=page*Hk;p.pages.head_stride=nhd?1:page;p.pages.token_stride=nhd?Hk:1;}
 p.kv_batch_stride=int64_t(Hk)*cap*D;p.kv_head_stride=nhd?D:int64_t(cap)*D;p.kv_token_stride=nhd?Hk*D:D;
 p.batch=B;p.kv_heads=Hk;p.group=G;p.head_dim=D;p.kv_capacity=s.kv_capacity;p.window_left=-1;p.outer_scale=0.2f*kLog2E; int win=-1,sk=0; if(!R(0,2)){win=p.window_left=R(0,120);sk=p.sink_tokens=R(0,20);}
 p.slices=c.slices;p.token_warps=c.token_warps;p.chunk_tokens=Divisor(c.chunk_tokens);p.block_heads=c.block_heads;p.head_blocks=c.head_blocks;p.splits=c.splits;p.cluster=c.cluster;
 if(c.cluster){p.cluster_quads=cluster_quads(c.block_heads,c.dim_tile,c.splits);while(1<<p.cluster_bits<c.splits)++p.cluster_bits;}
 p.ctas=c.ctas;p.merge_buffers=c.merge_buffers;p.merge_stride=c.merge_buffers==1?0:merge_floats(c.block_heads,c.token_warps,c.dim_tile);
 if(!s.paged&&c.splits==0){int rc=full_row_chunks(s,c);int64_t total=int64_t(B)*Hk*c.head_blocks*rc;p.full_row_chunks=Divisor(rc);p.full_request_rows=Divisor(Hk*c.head_blocks);p.full_piece=total/c.ctas;p.full_longer_pieces=total%c.ctas;}
 int threads=c.warps()*32; (c.cluster?(c.splits>2?nwide:ncl):c.splits?nfixed:nstream)++;
 if(s.paged)launch(c.ctas,threads,c.cluster?c.splits:1,c.shared_bytes,[&]{decode_kernel<FakeTile,PagedSource,256>(p);}); else launch(c.ctas,threads,c.cluster?c.splits:1,c.shared_bytes,[&]{decode_kernel<FakeTile,ContiguousSource,256>(p);});
 if(c.partial_slots){ int64_t rws=int64_t(B)*Hk*c.head_blocks; bool bb=c.splits==0&&c.ctas-1<rws; int64_t cand=bb?c.ctas-1:rws; if(cand){int64_t mp=c.splits>0?c.splits:(c.ctas+rws-1)/rws+1; bool bw=mp<=kCombineWarps; int64_t units=cand*c.block_heads,grid=bw?(units+7)/8:units; launch(grid,256,1,4096,[&]{combine_kernel<float,64>(p,(unsigned)cand,bb,bw);});}}
 for(int b=0;b<B;++b)for(int h=0;h<Hk*G;++h){ int n=eff[b]; std::vector<double> lg; double mx=-INFINITY; std::vector<int> js; for(int j=0;j<n;++j){ if(win>=0&&j<n-1-win&&j>=sk)continue; double a=0;for(int i=0;i<D;++i)a+=(double)Q[(b*Hk*G+h)*D+i]*K[at(b,h/G,j)+i]; a*=0.2;lg.push_back(a);js.push_back(j);mx=std::max(mx,a);}
  double sum=0;std::vector<double> o(D,0); for(size_t x=0;x<js.size();++x){double w=exp(lg[x]-mx);sum+=w;for(int i=0;i<D;++i)o[i]+=w*V[at(b,h/G,js[x])+i];}
  double lse=js.empty()?-INFINITY:mx+log(sum); float gl=L[b*Hk*G+h]; if(js.empty()?gl!=-INFINITY:!(fabs(gl-lse)<1e-4*(1+fabs(lse)))){printf("lse b%d h%d got %f want %f\n",b,h,gl,lse);goto bad;}
  for(int i=0;i<D;++i){float g=O[(b*Hk*G+h)*D+i];double w=js.empty()?0:o[i]/sum;if(!(fabs(g-w)<1e-4)){printf("out b%d h%d i%d got %f want %f\n",b,h,i,g,w);goto bad;}} }
 return true;
bad: printf("  batch %d kvh %d group %d dim %d cap %d paged %d lens %d splits %d cluster %d ctas %ld warps %d window %d\n",B,Hk,G,D,s.kv_capacity,s.paged,lens,c.splits,c.cluster,(long)c.ctas,c.warps(),win); return false;}
int main(int argc,char**argv){int n=argc>1?atoi(argv[1]):20,bad=0;for(int i=0;i<n;++i)if(!test()&&++bad>3)break;printf("stream %ld fixed %ld pairs %ld wide %ld, %d bad\n",nstream,nfixed,ncl,nwide,bad);}

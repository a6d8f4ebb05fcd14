#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cstdint>
#include <cmath>
#include <algorithm>
#include <vector>
#include <thread>
#include <random>
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
#define __shared__
#define __grid_constant__
using std::min; using std::max;
static inline unsigned min(unsigned a,int b){return std::min(a,(unsigned)b);}
static inline unsigned __umulhi(unsigned a,unsigned b){return (uint64_t(a)*b)>>32;}
static inline int __double2loint(double d){uint64_t u;memcpy(&u,&d,8);return (int)u;}
#define CUDA_NO_BFLOAT16
#define __CUDA_BF16_H__
#define __CUDA_FP16_H__
struct __nv_bfloat16{uint16_t b; __nv_bfloat16():b(0){} explicit __nv_bfloat16(float f){uint32_t u;memcpy(&u,&f,4);u+=0x7fff+((u>>16)&1);b=u>>16;} operator float()const{uint32_t u=uint32_t(b)<<16;float f;memcpy(&f,&u,4);return f;}};
struct __half{};
struct Dim{unsigned x,y,z;};
thread_local Dim threadIdx, blockIdx;
pthread_barrier_t bar;
static inline void __syncthreads(){pthread_barrier_wait(&bar);}
namespace jax_baracuda { alignas(16) float4 row_shared[16384]; }
#include "cache/kernel.cuh"
using namespace jax_baracuda;
std::mt19937 rng(7);
int R(int a,int b){return a+(int)(rng()%(unsigned)(b-a+1));}
template<class T> T val(){ return T(float(int(rng()%2001)-1000)/500.0f);} 
template<> uint16_t val<uint16_t>(){return (uint16_t)rng();}
template<class T,int kPiece,Pairs P,int TH,int B> void go(const RowParams&p,int64_t ctas){
  pthread_barrier_init(&bar,0,TH); std::vector<std::thread> ts;
  for(int t=0;t<TH;++t) ts.emplace_back([&,t]{ for(int64_t c=0;c<ctas;++c){ threadIdx={unsigned(t),0,0}; blockIdx={unsigned(c),0,0}; pthread_barrier_wait(&bar); row_kernel<T,kPiece,P,TH,B>(p); pthread_barrier_wait(&bar);} });
  for(auto&t:ts)t.join(); pthread_barrier_destroy(&bar);
}
template<class T,int kPiece,Pairs P> bool test(){
  constexpr int TH=64,B=4; bool paged=R(0,1), rot=P!=Pairs::kNone, query=rot&&R(0,2); bool nhd=R(0,1); bool stacked=R(0,1);
  int D=kPiece*R(1,kPiece>1?12:40), VD=kPiece*R(1,9), H=R(1,R(0,3)?6:90), QH=R(1,R(0,2)?9:100); if(D/(2*kPiece)*2*kPiece==0&&rot) D=2*kPiece;
  int rd=rot?2*kPiece*R(1,D/(2*kPiece)):0; int L=stacked?R(1,3):1;
  int Bq=R(1,6), T_=paged?0:R(1,20); int tokens=paged?R(1,90):Bq*T_; int page=R(1,9); int pages=paged?R(1,30):Bq; int cap=paged?page:R(1,40);
  int rows=cap; 
  auto alloc=[&](int64_t n){ std::vector<T> v(n+16); for(auto&x:v)x=val<T>(); return v;};
  auto al=[&](std::vector<T>&v){ return (T*)((reinterpret_cast<uintptr_t>(v.data())+15)/16*16);} ;
  std::vector<T> k=alloc(int64_t(tokens)*H*D),v=alloc(int64_t(tokens)*H*VD),q=alloc(int64_t(tokens)*QH*D),qo=alloc(int64_t(tokens)*QH*D);
  std::vector<T> ks=alloc(int64_t(L)*pages*H*rows*D),vs=alloc(int64_t(L)*pages*H*rows*VD);
  std::vector<T> ks0(al(ks),al(ks)+int64_t(L)*pages*H*rows*D),vs0(al(vs),al(vs)+int64_t(L)*pages*H*rows*VD);
  int entries=R(1,40); std::vector<int> pi(entries),indptr(Bq+1),pos(paged?tokens:Bq),bi(tokens),lay(paged?tokens:Bq);
  for(auto&x:pi)x=R(0,9)?R(0,pages-1):R(-2,pages+2); std::vector<int> used; indptr[0]=R(0,2); for(int b=0;b<Bq;++b)indptr[b+1]=indptr[b]+R(0,entries/Bq+1); if(!R(0,9))indptr[R(0,Bq)]=R(-3,entries+5);
  bool one_layer=R(0,1); for(auto&x:lay)x=R(0,9)?R(0,L-1):R(-1,L); 
  if(paged)for(int t=0;t<tokens;++t){bi[t]=R(0,9)?R(0,Bq-1):R(-1,Bq);pos[t]=R(0,9)?R(0,60):R(-2,200);} else for(auto&x:pos)x=R(0,9)?R(0,cap):R(-3,cap+3);
  std::vector<float> fr(rd/2+1); for(auto&x:fr)x=float(R(1,1000))/1000.0f; float af=0.5f+R(0,4)*0.25f;
  RowParams p={}; p.tokens=tokens; p.request_tokens=Divisor(paged?tokens:T_); p.positions=pos.data(); p.inv_freq=fr.data(); p.attention_factor=af; p.placement=paged?Placement::kPages:Placement::kCache;
  p.slot_rows=rows;p.layer_slots=pages;p.layer_count=L;p.layers=stacked?lay.data():nullptr;p.layer_stride=one_layer?0:1;
  p.batch_indices=bi.data();p.page_indices=pi.data();p.page_indptr=indptr.data();p.table_requests=Bq;p.entries=entries;p.page_size=Divisor(page);p.cache_requests=Divisor(pages);
  int RT=paged?tokens:T_; bool rn=paged||nhd;
  auto add=[&](const T*from,T*to,int h,int d,int rdim,bool placed){ RowSet&s=p.sets[p.set_count++]; s.source=from;s.target=to; int64_t slot=int64_t(h)*RT*d,row=rn?h*d:d,hd=rn?d:RT*d; s.source_token=row;s.source_head=hd;s.source_gap=slot-int64_t(RT)*row;
    if(placed){s.target_slot=int64_t(h)*rows*d;s.target_row=nhd?h*d:d;s.target_head=nhd?d:rows*d;}else{s.target_slot=slot;s.target_row=row;s.target_head=hd;} s.heads=h;s.dim=d;s.rotary_dim=rdim;s.placed=placed;};
  add(al(k),al(ks),H,D,rd,true); if(query)add(al(q),al(qo),QH,D,rd,false); add(al(v),al(vs),H,VD,0,true);
  DType dt=sizeof(T)==4?DType::kF32:DType::kBF16; RowPlan plan={dt,P==Pairs::kNeighbours,rot,kPiece>1};
  if(kPiece>1&&!fits_vectors(p,dt)){printf("not vector\n");return false;}
  int64_t ctas=choose_row_layout(plan,R(0,1)?1:132,&p,TH,B); if(p.shared_bytes>(int)sizeof(row_shared)){printf("big\n");return true;}
  memset(row_shared,0xff,sizeof(row_shared));
  go<T,kPiece,P,TH,B>(p,ctas);
  // oracle
  auto src=[&](std::vector<T>&x,int h,int d,int t,int hh)->T*{ int64_t slot=int64_t(h)*RT*d,row=rn?h*d:d,hd=rn?d:RT*d; return al(x)+(t/RT)*slot+(t%RT)*row+hh*hd;};
  auto position=[&](int t){return paged?pos[t]:pos[t/RT]+t%RT;};
  auto turned=[&](const T*r,int d,int rdim,int t,std::vector<double>&o){ o.resize(d); for(int i=0;i<d;++i)o[i]=sizeof(T)==2&&!rot?0:(double)(float)r[i]; for(int i=0;i<rdim/2;++i){int a=P==Pairs::kNeighbours?2*i:i,b=P==Pairs::kNeighbours?2*i+1:i+rdim/2; float ang=float(position(t))*fr[i]; double c=cos((double)ang)*af,s=sin((double)ang)*af,x=o[a],y=o[b];o[a]=x*c-y*s;o[b]=y*c+x*s;}};
  std::vector<int> count(int64_t(L)*pages*rows,0); std::vector<int> dst(tokens,-1);
  for(int t=0;t<tokens;++t){ int r=t/RT; int layer=stacked?lay[one_layer?0:(paged?t:r)]:0; if(layer<0||layer>=L)continue; int slot,row;
    if(paged){ if(bi[t]<0||bi[t]>=Bq||pos[t]<0)continue; int f=std::min(std::max(indptr[bi[t]],0),entries),e=std::min(std::max(indptr[bi[t]+1],0),entries); int n=pos[t]/page; if(n>=e-f)continue; int pg=pi[f+n]; if(pg<0||pg>=pages)continue; slot=pg;row=pos[t]%page;}
    else {slot=r%pages;row=position(t); if(row<0||row>=rows)continue;}
    dst[t]=(layer*pages+slot)*rows+row; count[dst[t]]++; }
  auto close=[&](const T&g,double w){double x=(double)(float)g; return fabs(x-w)<=1e-2*(fabs(w)+0.5)*(sizeof(T)==4?1e-3:1);};
  std::vector<double> o; std::vector<char> touchedk(int64_t(L)*pages*rows,0);
  for(int t=0;t<tokens;++t){ if(query)for(int h=0;h<QH;++h){turned(src(q,QH,D,t,h),D,rd,t,o); T*g=src(qo,QH,D,t,h); for(int i=0;i<D;++i)if(!close(g[i],o[i])){printf("query t%d h%d i%d %f %f\n",t,h,i,(float)g[i],o[i]);return false;}}
    if(dst[t]<0)continue; touchedk[dst[t]]=1; if(count[dst[t]]>1)continue; int slot=dst[t]/rows,row=dst[t]%rows;
    for(int h=0;h<H;++h){ T*gk=al(ks)+int64_t(slot)*H*rows*D+(nhd?(int64_t(row)*H+h)*D:(int64_t(h)*rows+row)*D); T*gv=al(vs)+int64_t(slot)*H*rows*VD+(nhd?(int64_t(row)*H+h)*VD:(int64_t(h)*rows+row)*VD);
      T*sk=src(k,H,D,t,h),*sv=src(v,H,VD,t,h); if(memcmp(gv,sv,VD*sizeof(T))){printf("v\n");return false;}
      if(!rot){if(memcmp(gk,sk,D*sizeof(T))){printf("k\n");return false;}} else {turned(sk,D,rd,t,o); for(int i=0;i<D;++i){ if(i>=rd?memcmp(gk+i,sk+i,sizeof(T))!=0:!close(gk[i],o[i])){printf("k rot t%d h%d i%d got %f want %f\n",t,h,i,(float)gk[i],o[i]);return false;}}}
    }}
  for(int64_t s=0;s<int64_t(L)*pages*rows;++s) if(!touchedk[s]) for(int h=0;h<H;++h){int64_t slot=s/rows,row=s%rows; int64_t ok=slot*H*rows*D+(nhd?(row*H+h)*D:(int64_t(h)*rows+row)*D),ov=slot*H*rows*VD+(nhd?(row*H+h)*VD:(int64_t(h)*rows+row)*VD); if(memcmp(al(ks)+ok,&ks0[ok],D*sizeof(T))||memcmp(al(vs)+ov,&vs0[ov],VD*sizeof(T))){printf("untouched\n");return false;}}
  return true;
}
int main(){ int bad=0,n=0; for(int i=0;i<60;++i){ bool r[]={test<uint16_t,8,Pairs::kNone>(),test<uint32_t,1,Pairs::kNone>(),test<uint32_t,4,Pairs::kNone>(),test<__nv_bfloat16,8,Pairs::kHalves>(),test<__nv_bfloat16,8,Pairs::kNeighbours>(),test<float,4,Pairs::kHalves>(),test<float,4,Pairs::kNeighbours>(),test<float,1,Pairs::kHalves>(),test<__nv_bfloat16,1,Pairs::kNeighbours>()}; for(int j=0;j<9;++j){n++; if(!r[j]){bad++;printf("case %d\n",j);}}} printf("%d runs, %d bad\n",n,bad);}

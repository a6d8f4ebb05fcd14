import heapq, sys
CT=132
def run(rows,N,M,causal,order,section,last,det=True,late=True,step=2.4,over=3.0,poll=0.45,rd=0.35,add=0.9,pas=0.5,B=1,per=2,ct=CT,jit=0.0,lead=2):
    """order: 'up' ascending keys forward visits; 'A' descending keys, forward; 'B' ascending keys, backward visits; mix: A then B for the last rows"""
    import random
    rng=random.Random(1)
    places=[]
    before=rows-last
    def emit(first,end,sec,rev):
        for f in range(first,end,sec):
            rs=range(f,min(f+sec,end))
            for w in range(N):
                n=N-1-w if rev else w
                for r in rs: places.append((r,n))
    if order=='mix':
        emit(0,before,section,True); emit(before,rows,max(last,1),False)
    else:
        emit(0,before,section,order=='A'); emit(before,rows,max(last,1),order=='A')
    chain=[0.0]*(rows*M)
    asks=[(0.0,i,0.0) for i in range(ct)]
    heapq.heapify(asks)
    busy=0.0; end_all=0.0; adder=[0.0]*ct; wait_all=0.0
    ends=[0.0]*ct
    for r,n in places:
        ask,c,free=heapq.heappop(asks)
        start=max(free,ask)
        lo=per*n if causal else 0
        back= order=='B' or (order=='mix' and r>=before)
        seq=range(M-1,lo-1,-1) if back else range(lo,M)
        base=r*M
        t=start+over/2; da=adder[c]; frees=[0.0]*B; k=0
        ideal=0
        for m in seq:
            st=step*(1+jit*(rng.random()-0.5))
            ideal+=st
            t+=st
            if det:
                f=frees[k%B]
                if f>t: t=f
                b=t if t>da else da
                tc=chain[base+m]
                seen=(b if b>tc else tc)+poll
                frees[k%B]=seen+rd
                da=seen+add+pas
                chain[base+m]=da
                k+=1
        adder[c]=da
        t+=over/2
        busy+=ideal+over
        ends[c]=max(t,da)
        heapq.heappush(asks,((t-lead*step) if late else start,c,t))
    T=max(ends)
    return busy/(T*ct),T
if __name__=='__main__':
    for causal in (False,True):
      for S in (512,1024,2048,4096,8192,16384):
        rows=16*16384//S; N=S//128; M=S//64
        fill=-(-264//N)
        out=[]
        s1=max(1,CT//N)
        base,_=run(rows,N,M,causal,'up',1,min(rows,fill),det=False,late=False)
        out.append('nondet %.3f'%base)
        o='A' if causal else 'up'
        e,_=run(rows,N,M,causal,o,min(rows,64),min(rows,max(fill,min(rows,64))),late=False,jit=.1)
        out.append('old %.3f'%(e/base))
        for order in ('up','A','B','mix'):
          for sec in (1,s1,2*s1):
            sec=min(sec,rows)
            for late in (True,False):
              for b in (1,2):
                e,_=run(rows,N,M,causal,order,sec,min(rows,max(fill,sec)),late=late,B=b,jit=.1)
                out.append('%s/%d/%s/%d %.2f'%(order,sec,'l' if late else 'p',b,e/base))
        print('causal' if causal else 'full',S,*out[:2]); 
        for i in range(2,len(out),12): print('   ',*out[i:i+12])
        sys.stdout.flush()

import random,sys
# one scheduler: W warps, each of another warpgroup. ops: (pipe, busy, latency) or control
def program(keys=128, overlap=False, turns=True, expturn=False, mufu_lat=23, poly=0):
    p=[]
    h=keys//2
    nq=4; np_=keys//16
    p.append(('stall',40))
    if turns: p.append(('take',0))
    p.append(('stall',20))
    for i in range(nq): p.append(('mma',keys//2,'S',i==nq-1)); p.append(('stall',8))
    p.append(('stall',20))
    for i in range(np_): p.append(('mma',32,'O',i==np_-1)); p.append(('stall',8))
    if turns: p.append(('give',0))
    p.append(('waitmma','S'))
    p.append(('stall',30))
    if not overlap: p.append(('waitmma','O')); p.append(('stall',20))
    for i in range(h//2+4): p.append(('alu',2,0,None))
    p.append(('stall',120))
    for i in range(12): p.append(('fma',1,0,None))
    p.append(('stall',20))
    if expturn: p.append(('take',1))
    # exponentials with FADD of the one two before, FFMA mixed in
    nm=h
    for i in range(nm+2):
        if i<nm:
            p.append(('fma',1,0,None)); p.append(('mufu',8,mufu_lat,i))
        if i>=2: p.append(('dep',i-2)); p.append(('fma',1,0,None))
        if not overlap and i>=2 and i%2: p.append(('alu',2,0,None))
    if expturn: p.append(('give',1))
    p.append(('stall',15))
    if overlap:
        p.append(('waitmma','O')); p.append(('stall',20))
        for i in range(h//2): p.append(('alu',2,0,None))
    return p
def sim(W=3,T=60000,mma='fifo',give_lat=25,**k):
    prog=program(**k)
    pc=[0]*W; ready=[random.randrange(0,300) for _ in range(W)]; steps=[0]*W
    pipe={'alu':0,'fma':0,'mufu':0}
    q=[]; qs=[[] for _ in range(W)]; cur=None; curend=0; rr=0
    done=[{} for _ in range(W)]; pend=[{'S':False,'O':False} for _ in range(W)]
    dep=[{} for _ in range(W)]
    token=[[0]*W,[0]*W]; token[0][0]=1; token[1][0]=1; tokt=[[0]*W,[0]*W]
    busy={'mufu':0,'mma':0,'issue':0}
    last=0; marks=[]
    for t in range(T):
        # tensor
        if cur and t>=curend:
            w,kind,lastone=cur[0],cur[2],cur[3]
            if lastone: pend[w][kind]=False; done[w][kind]=t+40
            cur=None
        if not cur:
            if mma=='fifo':
                if q: cur=q.pop(0)
            else:
                for d in range(W):
                    w=(rr+d)%W
                    if qs[w]: cur=qs[w].pop(0); rr=w+1; break
            if cur: curend=t+cur[1]; busy['mma']+=cur[1]
        issued=False
        for d in range(W):
            w=(last+d)%W  # greedy then others
            if ready[w]>t: continue
            op=prog[pc[w]]
            k0=op[0]; ok=True; cost=0
            if k0=='stall': ready[w]=t+op[1]; pc[w]+=1
            elif k0=='take':
                if token[op[1]][w] and tokt[op[1]][w]<=t: token[op[1]][w]=0; pc[w]+=1; ready[w]=t+10
                else: ok=False
            elif k0=='give':
                n=(w+1)%W; token[op[1]][n]=1; tokt[op[1]][n]=t+give_lat; pc[w]+=1; ready[w]=t+2
            elif k0=='mma':
                e=(w,op[1],op[2],op[3]); (q if mma=='fifo' else qs[w]).append(e); pend[w][op[2]]=True; pc[w]+=1; ready[w]=t+1
                # queue depth: at most 4 ahead per warp
            elif k0=='waitmma':
                if pend[w][op[1]] or done[w].get(op[1],0)>t: ok=False
                else: pc[w]+=1; ready[w]=t+2; ok=False if False else True
            elif k0=='dep':
                if dep[w][op[1]]>t: ok=False
                else: pc[w]+=1; ready[w]=t; ok=False
            else:
                if pipe[k0]>t: ok=False
                else:
                    pipe[k0]=t+op[1]; pc[w]+=1; ready[w]=t+1
                    if op[3] is not None: dep[w][op[3]]=t+op[2]
                    if k0=='mufu': busy['mufu']+=op[1]
            if pc[w]==len(prog): pc[w]=0; steps[w]+=1; (marks.append(t) if w==0 else None)
            if ok: busy['issue']+=1; last=w; break
    m=marks[len(marks)//3:]
    c=(m[-1]-m[0])/(len(m)-1)
    return c, busy['mufu']/T, busy['mma']/T, busy['issue']/T
if __name__=='__main__':
    for W in (2,3):
        for mma in ('fifo','rr'):
            for kw in (dict(),dict(turns=False),dict(overlap=True),dict(overlap=True,turns=False),dict(expturn=True),dict(overlap=True,expturn=True),dict(overlap=True,expturn=True,turns=False)):
                r=sim(W,mma=mma,**kw); print(W,mma,kw,'%.0f clk per 192: %.0f'%(r[0],r[0]*3/W),'mufu %.2f mma %.2f issue %.2f'%r[1:],flush=True)

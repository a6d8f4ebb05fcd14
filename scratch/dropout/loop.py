# counts of instructions in the main loop: from the S HGMMA group followed by PV group, to the next one's start, by address
import sys,re,subprocess,collections
for o in sys.argv[1:]:
    t=subprocess.run([ '$PATH_TO','-sass',f'../obj/{o}.o'],capture_output=True,text=True).stdout
    ins=[]
    for m in re.finditer(r'/\*([0-9a-f]{4,5})\*/\s+(@!?U?P\d+ )?([A-Z0-9_.]+)([^;]*);',t): ins.append((int(m[1],16),m[3],m[4]))
    hg=[k for k,x in enumerate(ins) if x[1].startswith('HGMMA')]
    # groups
    groups=[]; 
    for k in hg:
        if groups and k-groups[-1][-1]<120: groups[-1].append(k)
        else: groups.append([k])
    g=max(groups,key=len)
    # backward branch enclosing
    best=None
    for k,x in enumerate(ins):
        if x[1]=='BRA' or x[1].startswith('BRA'):
            m=re.search(r'0x([0-9a-f]+)',x[2])
            if m:
                to=int(m[1],16)
                if to<=ins[g[0]][0] and x[0]>=ins[g[-1]][0]:
                    n=x[0]-to
                    if best is None or n<best[0]: best=(n,to,x[0])
    print(o,'loop',best, 'hgmma',len(g))
    a,b=best[1],best[2]
    c=collections.Counter(x[1].split('.')[0] if not x[1].startswith(('IMAD.WIDE','MUFU','F2FP','IMAD.MOV')) else '.'.join(x[1].split('.')[:2]) for x in ins if a<=x[0]<=b)
    print('  total',sum(c.values()),dict(c.most_common(28)))

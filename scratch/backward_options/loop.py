import re,sys,collections
# instructions of the consumer's loop: the span of the last backward branch that has most HGMMA
f,fn=sys.argv[1],sys.argv[2]
lines=[];on=False
for l in open(f):
    if 'Function :' in l: on = 'hopper_backward_kernel' in l and fn in l
    elif on:
        m=re.match(r'\s+/\*([0-9a-f]{4,})\*/\s+(.*?);',l)
        if m: lines.append((int(m[1],16),m[2]))
best=None
for a,t in lines:
    m=re.search(r'BRA.*?0x([0-9a-f]+)',t)
    if m and int(m[1],16)<a:
        b=int(m[1],16); body=[x for x in lines if b<=x[0]<=a]
        n=sum('HGMMA' in x[1] for x in body)
        if n and (best is None or n>best[0] or (n==best[0] and len(body)<len(best[1]))): best=(n,body)
n,body=best
c=collections.Counter(re.sub(r'@!?U?P\d+ ','',t).split()[0].split('.')[0] for _,t in body)
print(fn,'loop',len(body),'hgmma',n,dict(c.most_common(34)))
if len(sys.argv)>3:
    for a,t in body: print(hex(a),t)

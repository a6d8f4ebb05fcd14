import re,subprocess,sys
def f(p):
    t=subprocess.run(['cuobjdump','-sass',p],capture_output=True,text=True).stdout
    d={}
    for part in re.split(r'\n\s*Function : ',t)[1:]:
        name=part.split('\n')[0]
        d[name]=[re.sub(r'/\*.*?\*/','',l).strip() for l in part.split('\n')[1:] if re.search(r'/\*[0-9a-f]{4,}\*/',l)]
    return d
a,b=f(sys.argv[1]),f(sys.argv[2])
for n in sorted(b):
    short=re.sub(r'_ZN12jax_baracuda\d+|13__nv_bfloat16|N?S_|10QuerySplit','',n)[:90]
    print('same' if a.get(n)==b[n] else 'DIFF %s %d'%(len(a[n]) if n in a else None,len(b[n])),short)

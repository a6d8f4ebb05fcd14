import re,sys
lines=open(sys.argv[1]).read().split('\n')
reg=0;start=0;tag='entry'
for i,l in enumerate(lines):
    m=re.search(r'USETMAXREG\S*\s.*?(0x[0-9a-f]+)',l)
    if m:
        print(tag,'lines',start,i,'max R',reg); reg=0;start=i;tag=m.group(0)[:60]
    if 'R2UR' in l or True:
        body=l.split('/*')[0] if '/*' in l else l
        for x in re.findall(r'\bR(\d+)\b',l.split(';')[0]):
            w=int(x)
            if '.128' in l: pass
            reg=max(reg,w)
print(tag,'lines',start,len(lines),'max R',reg)

import csv,sys
rows=list(csv.reader(open(sys.argv[1])))
h=rows[1]; R=rows[2:]
S=h.index('# Samples'); EX=h.index('Instructions Executed')
def num(x):
    try: return int(x.replace(',',''))
    except: return 0
segs=[];cur=None
for i,r in enumerate(R):
    e=num(r[EX])
    if cur is None or cur[2]!=e: cur=[i,i,e,0,0]; segs.append(cur)
    cur[1]=i; cur[3]+=num(r[S]); cur[4]+=1
for s in segs:
    if s[3]>100: print(s, R[s[0]][1].strip()[:50],'..',R[s[1]][1].strip()[:50])

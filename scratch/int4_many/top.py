import csv,sys
rows=list(csv.reader(open(sys.argv[1])))
h=rows[1]; R=rows[2:]
S=h.index('# Samples'); EX=h.index('Instructions Executed')
st=[i for i,n in enumerate(h) if n.startswith('stall_') and 'Not' not in n]
def num(x):
    try: return int(x.replace(',',''))
    except: return 0
tot=sum(num(r[S]) for r in R); print(tot)
for i,r in enumerate(R):
    s=num(r[S])
    if s>tot*float(sys.argv[2]):
        print(i,r[EX],s,r[1].strip()[:80],sorted(((num(r[j]),h[j][6:]) for j in st if num(r[j])),reverse=True)[:2])

import re,sys,collections
f,must,mustnot=sys.argv[1],sys.argv[2],(sys.argv+[''])[3]
cur=None;sec='';stack=[];prev=False;c=collections.Counter()
for l in open(f):
    m=re.match(r'\s*\.section\s+\.text\.(\S+?),',l)
    if m: sec=m.group(1)
    m=re.match(r'\s*//## File "([^"]+)", line (\d+)',l)
    if m:
        if not prev: stack=[]
        stack.append(m.group(1).split('/')[-1]+":"+m.group(2)); prev=True; continue
    if l.strip(): prev=False
    if 'BRA.DIV' in l and must in sec and not(mustnot and mustnot in sec): c[' < '.join(stack[:6])]+=1
for k,v in c.most_common(): print(v,k)

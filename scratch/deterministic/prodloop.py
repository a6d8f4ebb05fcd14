import re,sys
f=sys.argv[1]
lines=open(f).read().split('\n')
idx=[i for i,l in enumerate(lines) if l.startswith('\t.section\t.text')]
start=[i for i in idx if 'InOrder' in lines[i]][0]
end=min([i for i in idx if i>start]+[len(lines)])
cur=None;out=[];labels={}
for l in lines[start:end]:
    m=re.match(r'^(\.L_x_\d+):',l)
    if m: labels[m.group(1)]=len(out)
    m=re.match(r'\s*//## File "([^"]+)", line (\d+)',l)
    if m: cur=m.group(1).split('/')[-1]+":"+m.group(2)
    m=re.match(r'\s+/\*([0-9a-f]{4,6})\*/\s+(.*)',l)
    if m: out.append((m.group(1),m.group(2).strip(),cur))
for i,(a,t,c) in enumerate(out):
    if 'UTMALDG' in t or 'UBLKCP' in t: print(i,a,t[:60],c)
    m=re.search(r'`\((\.L_x_\d+)\)',t)
    if m and 'BRA' in t and labels.get(m.group(1),10**9)<i and i>4000 and i-labels[m.group(1)]>60: print('   back',i,a,'->',labels[m.group(1)],out[labels[m.group(1)]][0],t[:40],c)

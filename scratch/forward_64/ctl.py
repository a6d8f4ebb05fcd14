import sys,re,subprocess
CU='$PATH_TO'
out=subprocess.run([CU,'-sass',sys.argv[1]],capture_output=True,text=True).stdout.split('\n')
res=[];i=0
for k,l in enumerate(out):
    m=re.match(r'\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);?\s*/\* 0x([0-9a-f]{16}) \*/',l)
    if m:
        hi=re.search(r'/\* 0x([0-9a-f]{16}) \*/',out[k+1]).group(1)
        c=int(hi,16)>>41
        st=c&15; y=(c>>4)&1; wr=(c>>5)&7; rd=(c>>8)&7; wt=(c>>11)&63
        res.append((m.group(1),'%2d %s W%s R%s %s'%(st,'-' if y else 'Y',wr if wr<7 else '-',rd if rd<7 else '-',''.join(str(b) if wt>>b&1 else '.' for b in range(6))),re.sub(r'\s+',' ',m.group(2))))
for a,c,t in res: print(a,c,t)

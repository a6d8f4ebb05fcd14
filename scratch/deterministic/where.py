import re,sys
f,kern,*offs=sys.argv[1:]
INORD=(f.endswith("ord"));f=f.replace(":ord","");offs=[int(o,16) for o in offs]
cur=None;sec=None;line=None;stack=[];stack_open=False;stack_done=[]
for l in open(f):
    m=re.match(r'\.section\s+\.text\.(\S+?),',l) or re.match(r'\s*\.section\s+\.text\.(\S+?),',l)
    if m: sec=m.group(1)
    m=re.match(r'\s*//## File "([^"]+)", line (\d+)(.*)',l)
    if m:
        t=m.group(1).split('/')[-1]+":"+m.group(2)
        if 'inlined at' in m.group(3):
            if not stack_open: stack=[]; 
            stack.append(t); stack_open=True
        else:
            stack.append(t); stack_done=stack; stack=[]; stack_open=False
        continue
    m=re.match(r'\s+/\*([0-9a-f]{4,6})\*/\s+(.*)',l)
    if m:
        o=int(m.group(1),16)
        if sec and kern in sec and o in offs and ("InOrder" in sec)==(INORD): print(hex(o),m.group(2).strip()[:70],' <- '.join(stack_done))

import json, subprocess, os, re, shutil, sys
B='$PATH_TO'; W='$REPO'; HERE='$HERE/so'
cmds=subprocess.check_output(['$PATH_TO','-C',B,'-t','commands','_ffi.abi3.so'],text=True).splitlines()
link=[c for c in cmds if '-o _ffi.abi3.so' in c][-1]
names=['ffi/module.cc.o','ffi/attention/forward/handler.cc.o','ffi/attention/forward/paged_handler.cc.o','ffi/attention/forward/dispatch.cc.o','ffi/attention/hopper/dispatch.cc.o','ffi/attention/hopper/backward/dispatch.cc.o','ffi/attention/backward/dispatch.cc.o','ffi/attention/backward/handler.cc.o','attention/hopper_table.cc.o']
table=open(B+'/attention/hopper_table.cc').read()
for d in ('kF16','kBF16'):
    for u in ('kAny','kFewTiles'):
        a=f"      hopper_kernel_entry<DType::{d}, 256, 256, 80, 2, 1, 0, TileUse::{u}>(),\n"
        assert a in table
        table=table.replace(a,a+a.replace('80, 2','64, 2'))
for d in ('kF16','kBF16'):
    a=f"      hopper_kernel_entry<DType::{d}, 128, 128, 128, 2, 1, 0, TileUse::kAny>(),\n"
    assert a in table
    table=table.replace(a,a+a.replace('kAny','kPairs'))
open(HERE+'/hopper_table.cc','w').write(table)
for n in names:
    c=[c for c in cmds if re.search(r'-o \S*dir/'+re.escape(n)+r'\b',c)]
    assert len(c)==1,(n,len(c))
    out=HERE+'/'+n.replace('/','_')
    m=re.search(r'-o (\S+) -c (\S+)',c[0])
    assert m,c[0][-400:]
    obj=m.group(1); src=m.group(2)
    src=HERE+'/hopper_table.cc' if 'hopper_table' in n else src.replace('$REPO',W)
    cmd=c[0].replace(m.group(0),f'-o {out} -c {src}').replace('$REPO',W)
    cmd=re.sub(r'-MF \S+','-MF /tmp/f128.d',cmd)
    subprocess.check_call('nice -n 10 '+cmd if not cmd.startswith(':') else cmd,shell=True,cwd=B)
    link=link.replace(obj,out)
extra=' '.join(f'$HERE/obj/{d}_256_256_64_2_1_0_{u}.o' for d in ('kF16','kBF16') for u in ('kAny','kFewTiles'))
first=re.search(r'CMakeFiles/hopper_kernels\S+',link).group(0)
extra+=' '+' '.join(f'$HERE/obj/{d}_128_128_128_2_1_0_kPairs.o' for d in ('kF16','kBF16'))
link=link.replace(first,extra+' '+first,1).replace('-o _ffi.abi3.so',f'-o {HERE}/_ffi.abi3.so')
subprocess.check_call(link,shell=True,cwd=B)
shutil.copy(HERE+'/_ffi.abi3.so',W+'/jax_baracuda/_ffi.abi3.so')

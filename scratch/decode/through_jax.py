import os, sys, time, subprocess, statistics, threading
T0=time.monotonic()
sys.path.insert(0, os.getcwd()+"/bench")
from jax_baracuda.testing import timing
import paged_peers, paged_grid
from paged_cells import Job
import jax, jax.numpy as jnp
eng=paged_peers.JaxEngine()
rec=[]
orig=timing.sample
def sample(run,calls,*,seconds,samples):
    run(2); once=min(run(1) for _ in range(2))
    n=max(1,round(seconds/samples/once))
    t=[run(n)/(n*calls)*1e6 for _ in range(samples)]
    rec.append((n,calls,[round(x,1) for x in t]))
    return timing.Timing(statistics.median(t)/1e3,min(t)/1e3,max(t)/1e3,calls,n)
timing.sample=sample
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
def kernel(after_ref, out_ref):
    seen = after_ref[...].astype(jnp.int32)
    [t] = plt.elementwise_inline_asm("mov.u32 $0, %globaltimer_lo;", args=[seen], constraints="=r,r", pack=1, result_shape_dtypes=[jax.ShapeDtypeStruct((1,), jnp.uint32)])
    out_ref[...] = t
@jax.jit
def stamp(x):
    first = jax.tree.leaves(x)[0]
    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((1,), jnp.uint32), compiler_params=plt.CompilerParams(num_warps=1))(first[(0,)*first.ndim].reshape(1))
def device_times(run, state, count):
    """run(state)->state; microseconds between the ends of programs."""
    stamps=[]
    for i in range(count):
        state=run(state); stamps.append(stamp(state))
    t=np.array([int(x[0]) for x in jax.device_get(stamps)],np.uint32)
    return np.diff(t).astype(np.int64)/1e3
cells={c.name:c for c in paged_grid.FULL["decode"]}
print("start %.0f s, cpus %d"%(time.monotonic()-T0, os.cpu_count()),flush=True)
def burn(n):
    return [subprocess.Popen(["nice","-n","10",sys.executable,"-c","while True: pass"]) for _ in range(n)]
jobs=[Job("jax_baracuda",16),Job("flash_decode"),Job("flash_decode_lengths")]
for name in sys.argv[1:]:
    cell=cells[name]
    if time.monotonic()-T0>float(os.environ.get("MOST","60")): print(name,"late"); continue
    eng.prepare(jobs,cell)
    for load in (0,16):
        procs=burn(load)
        for job in jobs:
            key=(job,cell); prog=eng.programs[key]
            for sec,label in ((0.12,"5x24ms"),(0.9,"3x300ms")):
                b=eng.benches[type(cell)]
                if eng.held!=cell:
                    eng.release(); eng.data=jax.block_until_ready(b.inputs(job,cell)); eng.held=cell
                import paged_reads
                paged_reads.SAMPLES=5 if sec<.5 else 3
                try:
                    r=b.measure(job,cell,prog,eng.data,sec)
                    print("%-14s load %2d %-22s %-8s median %8.1f us %5.0f GB/s  %s"%(name,load,job.impl+str(job.page_size or ""),label,r["ms"]*1e3,cell.bytes/r["ms"]/1e6,rec[-1]),flush=True)
                    if sec<.5:
                        chain=prog[0]; q,stores=eng.data; tail=jax.device_put(b.tail(job,cell)); sets=tuple((*x,*tail) for x in stores)
                        run=(lambda st: chain(st,sets)) if cell.calls>1 else (lambda st: chain(q,sets))
                        device_times(run,jnp.copy(q),3)
                        d=device_times(run,jnp.copy(q),max(6,round(0.12/(r["ms"]*cell.calls/1e3))))/cell.calls
                        print("%-14s load %2d %-22s device   median %8.1f us %5.0f GB/s  least %.1f quarter %.1f 3/4 %.1f most %.1f of %d"%(name,load,job.impl+str(job.page_size or ""),np.median(d),cell.bytes/np.median(d)/1e3,d.min(),np.quantile(d,.25),np.quantile(d,.75),d.max(),len(d)),flush=True)
                except Exception as e: print(name,job.impl,"FAILED",str(e)[:200],flush=True)
        if load==0:
          for job in jobs[:2]:
            chain,check=eng.programs[(job,cell)]
            q,stores=eng.data
            tail=jax.device_put(b.tail(job,cell)); sets=tuple((*s,*tail) for s in stores)
            def go():
                return chain(jnp.copy(q),sets) if cell.calls>1 else chain(q,sets)
            try:
                jax.block_until_ready(go())
                for k,(n,ms) in timing.kernel_times(go).items(): print("   kernel",job.impl,k[:60],n,"%.1f us each"%(ms/n*1e3),flush=True)
            except Exception as e: print("profile failed",str(e)[:100])
        for p in procs: p.kill()
        for p in procs: p.wait()
    print("at %.0f s"%(time.monotonic()-T0),flush=True)

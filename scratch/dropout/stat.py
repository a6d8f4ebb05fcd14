import numpy as np, jax, jax.numpy as jnp
from jax_baracuda._src.attention import dropout as d
for seed in (0,7):
    for rate in (1e-4,.001,.1,.25,.5,.75,.9,.99):
        S=K=4096
        keep=d.keep_mask(jnp.array([0,seed,3,1],jnp.uint32), jnp.arange(S)[:,None], jnp.arange(K)[None], rate)
        x=1-np.asarray(keep).astype(np.float32); r=d.threshold(rate)/2**15; sd=np.sqrt(r*(1-r))
        z=(x.mean()-r)/sd*S
        rows=(x.mean(1)-r)/sd*np.sqrt(K); cols=(x.mean(0)-r)/sd*np.sqrt(S)
        y=(x-r)/sd
        out=[]
        b=y.reshape(S//16,2,8,K//32,2,2,4,2) # rows: blk, h, i ; cols: blk, m16, n8, t, e
        b=b.transpose(0,2,3,6,1,4,5,7).reshape(-1,16)
        C=b.T@b/len(b); off=C[np.triu_indices(16,1)]*np.sqrt(len(b))
        print(seed,rate,'z %.2f rows sd %.3f cols sd %.3f pairs in a draw: max|z| %.2f rms %.2f'%(z,rows.std(),cols.std(),abs(off).max(),np.sqrt((off**2).mean())))

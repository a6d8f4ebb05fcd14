"""A small _ffi.abi3.so of my tree: mkffi.py OUT REGEX-of-own-kernel-objects REGEX-of-kept-b90-objects"""
import re, subprocess, sys, os, pathlib
out, own, kept = sys.argv[1:4]
B = pathlib.Path("$PATH_TO"); W = "$REPO"; O = pathlib.Path("$HERE/ffi_o"); O.mkdir(exist_ok=True)
cmds = subprocess.check_output(["$PATH_TO", "-t", "commands", "_ffi.abi3.so"], cwd=B, text=True).splitlines()
link = cmds[-1]
by_obj = {}
for c in cmds[:-1]:
    m = re.search(r" -o (\S+\.o) ", c + " ")
    if m: by_obj[m[1]] = c
objs = re.findall(r"(\S+\.o)(?= )", link.split(" -o ")[1])
final = []
for o in objs:
    name = os.path.basename(o)[:-2]
    stem = name.rsplit(".", 1)[0]
    generated = "/ffi/" not in o and re.search(r"(kF16|kBF16|kF32)", name)
    if "table.cc" in name:
        src = (B / re.search(r"-c (\S+)", by_obj[o])[1]).read_text()
        lines = []
        for l in src.splitlines():
            m = re.match(r"\s+(\w+_entry)<(.*)>\(\),", l)
            if m:
                key = m[1] + "|" + m[2].replace("DType::", "").replace(" ", "")
                if not re.search(own, key) and not re.search(kept, key): continue
            lines.append(l)
        if "hopper_backward_table" in o:
            i = len(lines) - 1 - lines[::-1].index("}  // namespace jax_baracuda")
            lines[i:i] = ["const std::vector<HopperBiasGradient>& hopper_bias_gradients() {", "  static const std::vector<HopperBiasGradient> kernels = {hopper_bias_gradient_entry<DType::kBF16>(), hopper_bias_gradient_entry<DType::kF16>()};", "  return kernels;", "}"]
        t = O / (o.replace("/", "_") + ".cc"); t.write_text("\n".join(lines) + "\n")
        c = by_obj[o].replace("$REPO", W)
        c = re.sub(r" -c \S+", f" -c {t}", re.sub(r" -o \S+", f" -o {O}/{t.name}.o", c))
        c = re.sub(r"-M[TF] \S+|-MD", "", c)
        subprocess.check_call("nice -n 10 " + c, shell=True)
        final.append(f"{O}/{t.name}.o")
        continue
    if generated or "attention/backward/" in o or "attention/hopper/backward/" in o:
        if generated:
            text = pathlib.Path(re.search(r"-c (\S+)", by_obj[o])[1]).read_text()
            m = re.search(r"(\w+_entry)<(.*?)>\(\)", text)
            key = m[1] + "|" + m[2].replace("DType::", "").replace(" ", "")
            if re.search(own, key): pass
            elif re.search(kept, key): final.append(str(B / o)); continue
            else: continue
        c = by_obj[o].replace("$REPO", W).replace(f"sh {W}/cmake/ptxas_log.sh $PATH_TO ", "")
        to = O / o.replace("/", "_")
        c = re.sub(r"-M[TF] \S+|-MD", "", re.sub(r" -o \S+", f" -o {to}", c))
        src = re.search(r"-c (\S+)", c)[1]
        if not os.path.exists(to) or "--force" in sys.argv or generated is None:
            print("compile", name, flush=True)
            r = subprocess.run("nice -n 10 " + c, shell=True, capture_output=True, text=True)
            if r.returncode: print(r.stderr[:3000]); sys.exit(1)
        final.append(str(to)); continue
    final.append(str(B / o))
nv = by_obj[[k for k in by_obj if "hopper_backward_kBF16_64_64_0" in k][0]].replace("$REPO", W).replace(f"sh {W}/cmake/ptxas_log.sh $PATH_TO ", "")
for t in ("kBF16", "kF16"):
    src = O / f"hopper_bias_gradient_{t}.cu"
    src.write_text(open(W + "/ffi/attention/hopper/backward/inst/bias_gradient.cu.in").read().replace("@DTYPE@", t))
    to = O / f"hopper_bias_gradient_{t}.cu.o"
    c = re.sub(r"-M[TF] \S+|-MD", "", re.sub(r" -c \S+", f" -c {src}", re.sub(r" -o \S+", f" -o {to}", nv)))
    subprocess.check_call("nice -n 10 " + c + " 2>/dev/null", shell=True)
    final.append(str(to))
head = link.split(" -o ")[0].replace(": && ", "")
tail = re.sub(r"\S+\.o(?= )", "", link.split(" -o ")[1].split(" ", 1)[1] + " ").replace(" && :", "").replace("$PATH_TO.map", str(B / "exports.map"))
tail = re.sub(r"(?<=\s)(lib\S+\.a|\S+\.a)(?=\s)", lambda m: m[1] if m[1].startswith("/") else str(B / m[1]), tail)
cmd = f"{head} -o {out} {' '.join(final)} {tail}"
r = subprocess.run(cmd, shell=True, cwd=B, capture_output=True, text=True)
print(r.stderr[-1500:], os.path.getsize(out) if os.path.exists(out) else "none")

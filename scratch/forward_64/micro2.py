s=open('micro.cu').read()
i=s.index('int main()')
s=s[:i]+'''int main() {
  run<1, 2, 6, 1>("PV beside ex2", 16, 64); run<1, 2, 6, 2>("PV beside ex2 of two warps a scheduler", 16, 64); run<1, 1, 6, 1>("PV of one beside ex2", 16, 64);
  run<1, 2, 7, 2>("PV beside FFMA of two", 16, 256); run<1, 2, 8, 1>("PV beside max", 16, 128); run<1, 2, 8, 2>("PV beside max of two", 16, 128);
  run<3, 2, 6, 1>("64x64x16 SS beside ex2", 16, 64); run<3, 2, 8, 1>("64x64x16 SS beside max", 16, 128);
  return 0;
}
'''
open('micro2.cu','w').write(s)

#include "entry.cuh"
#include <cstdio>
#include <vector>
#include "list.inc"
int main() { for (auto& e : entries()) if (e.name[0]=='v' && !e.medium) printf("%s rows %d ch %d depth %d threads %d ctas %d steps %d shared %.1f KB\n", e.name, e.rows, e.channels, e.depth_groups, e.threads, e.ctas, e.steps, e.shared_bytes/1024.0); }

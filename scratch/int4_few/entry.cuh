#pragma once
#include <cuda_runtime.h>
struct Entry { const char* name; int medium, f16, rows, channels, threads, ctas, steps, shared_bytes, channel_groups, depth_groups, units; const void* kernel; void* (*marks)(); };

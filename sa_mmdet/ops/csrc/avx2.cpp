#define CPU_CAPABILITY AVX2
#define CPU_CAPABILITY_AVX2
#define SA_MMDET_CAPABILITY avx2
#include "operator.h"

#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512
#define SA_MMDET_CAPABILITY avx512
#include "operator.h"

#define CPU_CAPABILITY DEFAULT
#define CPU_CAPABILITY_DEFAULT
#define SA_MMDET_CAPABILITY default
#include "operator.h"

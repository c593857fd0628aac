/* expect: frame_loam_type_ */
#include <loam/sched.h>
typedef struct frame {
    struct frame *caller;
} frame;
LOAM_FRAME(frame);

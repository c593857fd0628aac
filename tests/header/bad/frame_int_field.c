/* expect: loam_field_is_not_whole_aligned_words */
#include <loam/sched.h>
typedef struct frame {
    struct frame *caller;
    int depth;
} frame;
LOAM_TYPE_NOSCAN(frame);
LOAM_FRAME_INNER(frame, caller, depth);

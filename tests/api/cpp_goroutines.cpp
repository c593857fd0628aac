/* C++ on goroutines: exceptions are thrown and caught over frames that have parked, destructors run on the way, a
 * lambda without captures is a goroutine's function, and an exception that nobody catches ends the program as it does on a
 * thread. (The exception that is being handled belongs to the thread: no park in a catch block, nor while one passes.)
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: four_procs | GOMAXPROCS=4 GODEBUG=clobberfree=1 GOGC=5 | | 60 */
#include "../support/test.h"

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <loam/sched.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/items.h"

namespace
{

std::atomic<size_t> done;

size_t scaled(size_t count)
{
    return TEST_SANITIZED || getenv("TEST_EMULATOR") != nullptr ? count / 10 : count;
}

void wait_for(size_t count)
{
    uint64_t start = now_ns();
    while (done.load() < count) {
        EXPECT_MSG(seconds_since(start) < 50, "%zu of %zu have ended", done.load(), count);
        loam_sleep(100000);
    }
}

struct counted {
    int *count;
    explicit counted(int *c) : count(c)
    {
        ++*count;
    }
    counted(const counted &) = delete;
    counted &operator=(const counted &) = delete;
    ~counted()
    {
        --*count;
    }
};

NOINLINE int fall_and_throw(int levels, int *alive, struct rng *rng)
{
    counted here(alive);
    item *mine = item_new(static_cast<uint64_t>(levels), nullptr);
    if (rng_below(rng, 3) == 0) {
        loam_yield();
    }
    if (levels == 0) {
        throw std::runtime_error("at the bottom of " + std::to_string(rng->state));
    }
    int below = fall_and_throw(levels - 1, alive, rng);
    item_check(mine);
    return below + 1;
}

void throw_and_catch(void *arg)
{
    struct rng rng = rng_stream(reinterpret_cast<uintptr_t>(arg));
    for (size_t i = 0; i < scaled(50) + 1; i++) {
        int alive = 0;
        bool caught = false;
        try {
            fall_and_throw(20, &alive, &rng);
        } catch (const std::runtime_error &e) {
            caught = std::string(e.what()) == "at the bottom of " + std::to_string(rng.state);
        }
        EXPECT(caught);
        EXPECT_EQ(alive, 0);
        loam_yield();
    }
    done++;
}

void exceptions()
{
    done = 0;
    for (uintptr_t i = 0; i < 100; i++) {
        EXPECT_EQ(loam_go(throw_and_catch, reinterpret_cast<void *>(i)), 0);
    }
    wait_for(100);
}

void lambdas()
{
    done = 0;
    std::vector<int> values(100, 0);
    for (size_t i = 0; i < values.size(); i++) {
        EXPECT_EQ(loam_go(
                      [](void *arg) {
                          *static_cast<int *>(arg) = 7;
                          done++;
                      },
                      &values[i]),
                  0);
    }
    wait_for(100);
    for (int v : values) {
        EXPECT_EQ(v, 7);
    }
}

struct job {
    loam_chan *out;
    std::string text;
};

void channels()
{
    loam_chan *c = loam_chan_make_bytes(sizeof(std::string *), 4);
    EXPECT_NOT_NULL(c);
    done = 0;
    job j = {c, "a string too long to lie in itself, "};
    EXPECT_EQ(loam_go(
                  [](void *arg) {
                      auto *mine = static_cast<job *>(arg);
                      for (int i = 0; i < 100; i++) {
                          auto *s = new std::string(mine->text + std::to_string(i));
                          loam_chan_send(mine->out, &s);
                      }
                      loam_chan_close(mine->out);
                  },
                  &j),
              0);
    std::string *s = nullptr;
    int count = 0;
    while (loam_chan_recv(c, &s)) {
        std::unique_ptr<std::string> owned(s);
        EXPECT(*owned == j.text + std::to_string(count));
        count++;
    }
    EXPECT_EQ(count, 100);
}

void child_uncaught()
{
    EXPECT_EQ(loam_run([](void *) { throw std::runtime_error("nobody wants it"); }, nullptr), 0);
}

const struct child_case children[] = {{"uncaught", child_uncaught}};

void uncaught()
{
    static struct child c;
    child_run(&c, "uncaught", nullptr, 30);
    EXPECT_CHILD_ABORTED(&c);
    EXPECT_CONTAINS(c.text, "nobody wants it");
}

} // namespace

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    RUN(exceptions);
    RUN(lambdas);
    RUN(channels);
    RUN(uncaught);
    return test_end();
}

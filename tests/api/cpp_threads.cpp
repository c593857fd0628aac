/* std::thread is a thread like any other: it attaches by allocating and detaches by ending; thread_local objects hold
 * what they point to until their destructors have run, which may allocate; what is handed over in a lambda's captures,
 * or comes back through a future, lies in memory of operator new and is pinned.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 60 */
#include "../support/test.h"

#include <atomic>
#include <future>
#include <thread>
#include <vector>

#include "../support/heap.h"
#include "../support/items.h"

/* Collections while it is in scope. */
class collecting
{
  public:
    collecting()
        : thread([this] {
              while (!stop) {
                  loam_gc();
              }
          })
    {
    }
    ~collecting()
    {
        stop = true;
        thread.join();
    }

  private:
    std::atomic<bool> stop{false};
    std::thread thread;
};

static void attached_by_allocating()
{
    collecting beside;
    for (size_t i = 0; i < test_scaled(200); i++) {
        std::vector<std::thread> threads;
        for (size_t k = 0; k < 4; k++) {
            threads.emplace_back([k] { EXPECT_EQ(list_check(list_new(k * 50)), k * 50); });
        }
        for (std::thread &t : threads) {
            t.join();
        }
    }
}

/* ---- thread_local objects ---- */

static std::atomic<size_t> destroyed;

struct holder {
    item *list = list_new(100);
    ~holder()
    {
        EXPECT_EQ(list_check(list), 100);
        list = list_new(10); /* still attached, or anew */
        EXPECT_EQ(list_check(list), 10);
        destroyed++;
    }
};
static thread_local holder held;

static void held_by_thread_local_objects()
{
    enum { THREADS = 8 };
    std::atomic<size_t> ready{0};
    std::atomic<bool> go_on{false};
    std::vector<std::thread> threads;
    destroyed = 0;
    for (size_t i = 0; i < THREADS; i++) {
        threads.emplace_back([&] {
            EXPECT_EQ(list_check(held.list), 100);
            ready++;
            WAIT_FOR(60, go_on.load());
        });
    }
    WAIT_FOR(60, ready == THREADS);
    for (int i = 0; i < 5; i++) { /* from here on only the thread_local objects hold the lists */
        scrub_stack();
        loam_gc();
    }
    collecting beside; /* and while the destructors run */
    go_on = true;
    for (std::thread &t : threads) {
        t.join();
    }
    EXPECT_EQ(destroyed, THREADS);
}

/* ---- from thread to thread ---- */

static void handed_over_and_given_back()
{
    collecting beside;
    for (size_t i = 0; i < test_scaled(300); i++) {
        std::atomic<bool> attached{false};
        item *given = static_cast<item *>(loam_pin(list_new(20)));
        std::future<item *> result = std::async(std::launch::async, [given, &attached] {
            EXPECT_EQ(loam_attach(), 0);
            item *mine = given; /* held by this frame from here on */
            attached = true;
            item *longer = item_new(20, mine);
            return static_cast<item *>(loam_pin(longer)); /* on its way nothing holds it */
        });
        WAIT_FOR(60, attached.load());
        loam_unpin(given);
        item *back = result.get();
        EXPECT_EQ(list_check(back), 21);
        loam_unpin(back);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(attached_by_allocating);
    RUN(held_by_thread_local_objects);
    RUN(handed_over_and_given_back);
    return test_end();
}

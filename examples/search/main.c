/* main.c - options; runs the same thing twice and prints both side by side.
 *
 * A heap has one collector for the life of its process, so each run is a process of its own: the
 * program starts itself again, with GODEBUG saying how to collect, and reads the figures from a
 * pipe.
 */
#define _GNU_SOURCE
#include "search.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const usual_folders[] = {"/usr/share/doc", "/usr/share/common-licenses",
                                            "/usr/include"};

static const char usage[] =
    "usage: search [--seconds N] [--threads N] [--max-mb N] [--json] [folder ...]\n"
    "Indexes the plain text files of the folders (/usr/share/doc, /usr/share/common-licenses and\n"
    "/usr/include by default), drops and re-indexes them for N seconds (15) with N threads (2)\n"
    "while another one answers queries, and compares concurrent with stop-the-world collection.\n"
    "At most N megabytes of text are used (64).\n";

static int number(const char *text, int max)
{
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != 0 || n < 0 || n > max) {
        fprintf(stderr, "search: '%s' is not a number from 0 to %d\n", text, max);
        exit(2);
    }
    return (int)n;
}

static struct options parse(int argc, char *argv[])
{
    static const struct option names[] = {{"seconds", required_argument, NULL, 's'},
                                          {"threads", required_argument, NULL, 't'},
                                          {"max-mb", required_argument, NULL, 'm'},
                                          {"json", no_argument, NULL, 'j'},
                                          {"help", no_argument, NULL, 'h'},
                                          {"figures-fd", required_argument, NULL, 'f'},
                                          {NULL, 0, NULL, 0}};
    struct options o = {.seconds = 15, .threads = 2, .max_mb = 64, .figures_fd = -1};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;)
        switch (c) {
        case 's':
            o.seconds = number(optarg, 86400);
            break;
        case 't':
            o.threads = number(optarg, 256);
            break;
        case 'm':
            o.max_mb = number(optarg, 65536);
            break;
        case 'j':
            o.json = true;
            break;
        case 'f':
            o.figures_fd = number(optarg, 1 << 20);
            break;
        case 'h':
            fputs(usage, stdout);
            exit(0);
        default:
            fputs(usage, stderr);
            exit(2);
        }
    if (o.threads == 0 || o.max_mb == 0 || o.seconds == 0) {
        fputs("search: --seconds, --threads and --max-mb are at least 1\n", stderr);
        exit(2);
    }
    o.folders = optind < argc ? (const char *const *)argv + optind : usual_folders;
    o.folder_count = optind < argc ? (size_t)(argc - optind)
                                   : sizeof usual_folders / sizeof usual_folders[0];
    return o;
}

/* ---- the two processes ---- */

static void die(const char *what)
{
    fprintf(stderr, "search: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* Whatever else GODEBUG says stays; of a key that comes twice, the last one counts. */
static void set_collector(bool stop_the_world)
{
    const char *before = getenv("GODEBUG");
    char *all;
    if (asprintf(&all, "%s%sgcstoptheworld=%d", before ? before : "", before && *before ? "," : "",
                 stop_the_world) < 0 ||
        setenv("GODEBUG", all, 1) != 0)
        die("GODEBUG");
    free(all);
}

static _Noreturn void become_child(int argc, char *argv[], bool stop_the_world, int fd)
{
    char where[32];
    snprintf(where, sizeof where, "--figures-fd=%d", fd);
    char **args = calloc((size_t)argc + 2, sizeof *args);
    if (args == NULL)
        die("calloc");
    args[0] = argv[0];
    args[1] = where; /* in front: what follows may be folders */
    for (int i = 1; i < argc; i++)
        args[i + 1] = argv[i];
    set_collector(stop_the_world);
    execv("/proc/self/exe", args);
    execvp(argv[0], args);
    die(argv[0]);
    abort();
}

static struct figures run_child(int argc, char *argv[], bool stop_the_world)
{
    int ends[2];
    if (pipe(ends) != 0)
        die("pipe");
    fprintf(stderr, "%s collection:\n", stop_the_world ? "stop-the-world" : "concurrent");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        close(ends[0]);
        become_child(argc, argv, stop_the_world, ends[1]);
    }
    close(ends[1]);
    struct figures f;
    size_t got = 0;
    for (ssize_t n; got < sizeof f && (n = read(ends[0], (char *)&f + got, sizeof f - got)) > 0;)
        got += (size_t)n;
    close(ends[0]);
    int status;
    if (waitpid(child, &status, 0) < 0)
        die("waitpid");
    if (WIFSIGNALED(status))
        fprintf(stderr, "search: the run ended by signal %d (%s)\n", WTERMSIG(status),
                strsignal(WTERMSIG(status)));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || got != sizeof f)
        exit(1); /* the child has said why */
    return f;
}

/* ---- the table ---- */

enum unit { COUNT, MEGABYTES, MILLISECONDS };

static const char *grouped(uint64_t n, char text[32]) /* 1234567: 1,234,567 */
{
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%" PRIu64, n), out = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0)
            text[out++] = ',';
        text[out++] = digits[i];
    }
    text[out] = 0;
    return text;
}

static void cell(enum unit unit, uint64_t value)
{
    char text[32];
    if (value == UINT64_MAX)
        printf("%18s", "off");
    else if (unit == MILLISECONDS)
        printf("%15.3f ms", (double)value / 1e6);
    else if (unit == MEGABYTES)
        printf("%15s MB", grouped(value >> 20, text));
    else
        printf("%18s", grouped(value, text));
}

static void row(const char *name, enum unit unit, uint64_t concurrent, uint64_t stopping)
{
    printf("%-34s", name);
    cell(unit, concurrent);
    cell(unit, stopping);
    putchar('\n');
}

static void print_table(const struct figures *a, const struct figures *b)
{
    printf("\n%-34s%18s%18s\n", "", "concurrent", "stop-the-world");
    row("documents", COUNT, a->counts.documents, b->counts.documents);
    row("terms", COUNT, a->counts.terms, b->counts.terms);
    row("postings", COUNT, a->counts.postings, b->counts.postings);
    row("postings dropped meanwhile", COUNT, a->counts.dropped, b->counts.dropped);
    row("allocations per second", COUNT, a->objects_per_second, b->objects_per_second);
    row("  bytes of these", MEGABYTES, a->bytes_per_second, b->bytes_per_second);
    row("collection cycles", COUNT, a->cycles, b->cycles);
    row("live heap at the end", MEGABYTES, a->live_bytes, b->live_bytes);
    row("  goal of the next cycle", MEGABYTES, a->goal_bytes, b->goal_bytes);
    printf("%-34s%16.0f %%%16.0f %%\n", "  highest heap, of its goal", a->worst_overshoot * 100,
           b->worst_overshoot * 100);
    row("peak resident memory", MEGABYTES, a->peak_rss_bytes, b->peak_rss_bytes);
    row("longest stop by the collector", MILLISECONDS, a->longest_stop_ns, b->longest_stop_ns);
    row("queries", COUNT, a->queries, b->queries);
    row("  latency p50", MILLISECONDS, a->p50_ns, b->p50_ns);
    row("  latency p99", MILLISECONDS, a->p99_ns, b->p99_ns);
    row("  latency p99.9", MILLISECONDS, a->p999_ns, b->p999_ns);
    row("  latency max", MILLISECONDS, a->max_ns, b->max_ns);
    row("queries equal to a plain scan", COUNT, a->checked, b->checked);
}

static void print_json(const char *name, const struct figures *f)
{
    printf("  \"%s\": {\n"
           "    \"documents\": %zu, \"terms\": %zu, \"postings\": %zu, \"dropped_postings\": %zu,\n"
           "    \"allocations_per_second\": %" PRIu64 ", \"allocated_bytes_per_second\": %" PRIu64
           ",\n    \"cycles\": %" PRIu64 ", \"live_bytes\": %" PRIu64 ", \"goal_bytes\": %" PRIu64
           ",\n    \"highest_heap_of_goal\": %.3f, \"peak_rss_bytes\": %" PRIu64
           ", \"longest_stop_ns\": %" PRIu64 ",\n    \"queries\": %" PRIu64
           ", \"latency_ns\": {\"p50\": %" PRIu64 ", \"p99\": %" PRIu64 ", \"p99.9\": %" PRIu64
           ", \"max\": %" PRIu64 "},\n    \"checked_queries\": %" PRIu64 "\n  }",
           name, f->counts.documents, f->counts.terms, f->counts.postings, f->counts.dropped,
           f->objects_per_second, f->bytes_per_second, f->cycles, f->live_bytes, f->goal_bytes,
           f->worst_overshoot, f->peak_rss_bytes, f->longest_stop_ns, f->queries, f->p50_ns,
           f->p99_ns, f->p999_ns, f->max_ns, f->checked);
}

int main(int argc, char *argv[])
{
    struct options o = parse(argc, argv);
    if (o.figures_fd >= 0) { /* we are one of the runs */
        struct figures f;
        run(&o, &f);
        return write(o.figures_fd, &f, sizeof f) == (ssize_t)sizeof f ? 0 : 1;
    }

    struct corpus corpus;
    corpus_load(&corpus, o.folders, o.folder_count, (size_t)o.max_mb << 20);
    if (corpus.count == 0) {
        fputs("search: there is no plain text to index in", stderr);
        for (size_t i = 0; i < o.folder_count; i++)
            fprintf(stderr, " %s", o.folders[i]);
        fputs("\nName a folder that has some: search FOLDER\n", stderr);
        return 1;
    }
    fprintf(stderr, "%zu files, %.1f MB of text, %d indexing threads, twice %d seconds\n",
            corpus.count, (double)corpus.bytes / 1048576, o.threads, o.seconds);

    struct figures concurrent = run_child(argc, argv, false);
    struct figures stopping = run_child(argc, argv, true);
    if (o.json) {
        puts("{");
        print_json("concurrent", &concurrent);
        puts(",");
        print_json("stop_the_world", &stopping);
        puts("\n}");
    } else {
        print_table(&concurrent, &stopping);
    }
    return 0;
}

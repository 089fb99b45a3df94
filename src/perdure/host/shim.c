/* The parent process of one agent, compiled. It does what `shim.py` does, for Linux alone: see there
 * for the files, the guarantee and the reasons. It starts in a millisecond and needs a tenth of the
 * memory.
 *
 * `perdure.host.process.launch` runs it as `shim-HASH DIRECTORY` if it is installed beside the
 * package, and shim.py otherwise. Functions, constants and messages have the same names and the same
 * order in both files. Change them together: tests/process/test_process_shims.py runs both on the
 * same input and compares what they write. Where shim.py would end with an exception, this program
 * writes a message to stderr (`shim.err`) and exits with code 1.
 *
 * The agent can write to every file of the attempt, and names its own processes. So no size, number
 * or text that is read here is trusted.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LAUNCH_FD 3
#define LOCK_FD 4
#define WATCH_S 1.0
#define ORPHAN_GRACE_S 2.0
#define OVER_GRACE_S 1.0
#define SETTLE_S 0.1
#define FOLLOWED_S 0.1
#define ALONE_GRACE_S 1.0
#define OVER "over"
#define COMMAND_CAP 500
#define LEFT_CAP 50
#define FLOOD_RATE (2.0 * 1024 * 1024 * 1024)
/* Number of bytes that are reserved for each of the files that are written last. */
#define RESERVED 512
/* The kernel's own limit of pids (PID_MAX_LIMIT). */
#define PID_LIMIT (4 * 1024 * 1024)
/* Maximum size of the file `kept`, in bytes. It is enough for all pids that Linux can have. */
#define KEPT_CAP (32 * 1024 * 1024)
#define NO_CAP SIZE_MAX
/* The resource limit that carries the mark (see RLIMIT_LOCKS in `system/linux.py`). */
#ifndef RLIMIT_LOCKS
#define RLIMIT_LOCKS 10
#endif

struct buffer {
    char *data;
    size_t size, room;
};

struct word {
    const char *at;
    size_t size;
};

/* A set of pids, as a bit for each. Pages that were never written need no memory. */
struct pid_set {
    unsigned char *bits;
    size_t count;
};

struct pids {
    pid_t *each;
    size_t size, room;
};

struct stat_of {
    char state;
    pid_t parent;
    long long threads, start;
};

struct limits {
    double deadline_s, grace_s;
    long long cap;
};

struct lease {
    double until, end_by;
    bool followed;
};

struct launch {
    struct limits limits;
    rlim_t mark;
    bool locked;
    char *cwd, **argv;
};

/* The processes that outlived the agent: JSON objects, and their number. */
struct left {
    struct buffer described;
    size_t count;
};

/* Why the agent could not be started. */
struct failure {
    bool at_cwd;
    int number;
};

/* --- errors, memory and texts */

static const char *error_text(int number)
{
    /* Messages are the same whether this program was built with musl or with glibc. */
    switch (number) {
    case ELOOP:
        return "Too many levels of symbolic links";
    case ENAMETOOLONG:
        return "File name too long";
    case EMFILE:
        return "Too many open files";
    case EIO:
        return "Input/output error";
    case EDQUOT:
        return "Disk quota exceeded";
    case ENOMEM:
        return "Cannot allocate memory";
    default:
        return strerror(number);
    }
}

static _Noreturn void die(const char *what)
{
    dprintf(STDERR_FILENO, "perdure: the shim cannot %s: %s\n", what, error_text(errno));
    _exit(1);
}

static void *resized(void *block, size_t count, size_t size)
{
    void *found = reallocarray(block, count, size);
    if (found == NULL)
        die("allocate memory");
    return found;
}

static void make_room(struct buffer *buffer, size_t more)
{
    if (buffer->room - buffer->size > more)
        return;
    if (more >= SIZE_MAX / 4 || buffer->size >= SIZE_MAX / 4) {
        errno = ENOMEM;
        die("allocate memory");
    }
    buffer->room = 2 * (buffer->size + more) + 1;
    buffer->data = resized(buffer->data, buffer->room, 1);
}

__attribute__((format(printf, 2, 3))) static void append(struct buffer *to, const char *format, ...)
{
    va_list words;
    va_start(words, format);
    int size = vsnprintf(NULL, 0, format, words);
    va_end(words);
    if (size < 0)
        die("format a text");
    make_room(to, (size_t)size + 1);
    va_start(words, format);
    vsnprintf(to->data + to->size, (size_t)size + 1, format, words);
    va_end(words);
    to->size += (size_t)size;
}

static void discard(struct buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct buffer){0};
}

/* --- files */

/* Read a file to its end, but at most `most` bytes, and add a NUL that does not count. Return false,
 * with errno, if it cannot be read. */
static bool read_fd(int fd, size_t most, struct buffer *into)
{
    make_room(into, most < 1024 ? most : 1024);
    while (into->size < most) {
        make_room(into, 1024);
        size_t want = into->room - into->size - 1;
        if (want > most - into->size)
            want = most - into->size;
        ssize_t got = read(fd, into->data + into->size, want);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return false;
        if (got == 0)
            break;
        into->size += (size_t)got;
    }
    into->data[into->size] = '\0';
    return true;
}

static bool read_file(const char *path, size_t most, struct buffer *into)
{
    /* Without O_NONBLOCK, a pipe that the agent put in the place of a file would block forever. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    bool whole = read_fd(fd, most, into);
    int number = errno;
    close(fd);
    errno = number;
    return whole;
}

static bool put(int fd, const char *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t written = pwrite(fd, data + done, size - done, (off_t)done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return false;
        done += (size_t)written;
    }
    return true;
}

/* Close a descriptor, and keep errno. */
static bool closed(int fd, bool result)
{
    int number = errno;
    close(fd);
    errno = number;
    return result;
}

/* Write a file in the current directory, completely or not at all, and make it durable. Return
 * false, with errno, if that fails. */
static bool write_once(const char *name, const struct buffer *text)
{
    char part[64];
    snprintf(part, sizeof part, "%s.part", name);
    int fd = open(part, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    /* The blocks of the temporary file were reserved earlier and are overwritten in place, so this
     * works even if the disk is full. */
    bool written = put(fd, text->data, text->size) && ftruncate(fd, (off_t)text->size) == 0 &&
                   fsync(fd) == 0;
    if (!closed(fd, written) || rename(part, name) != 0)
        return false;
    fd = open(".", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    return closed(fd, fsync(fd) == 0);
}

/* --- words and numbers in files */

static bool is_space(char letter)
{
    return letter == ' ' || (letter >= '\t' && letter <= '\r');
}

/* Return the next word of a text, and shorten the text by it. At the end its size is 0. */
static struct word next_word(struct word *text)
{
    while (text->size > 0 && is_space(*text->at))
        text->at++, text->size--;
    struct word found = {text->at, 0};
    while (text->size > 0 && !is_space(*text->at))
        text->at++, text->size--, found.size++;
    return found;
}

static bool same(struct word word, const char *text)
{
    return word.size == strlen(text) && memcmp(word.at, text, word.size) == 0;
}

static bool is_digit(char letter)
{
    return letter >= '0' && letter <= '9';
}

/* Return whether there is an underscore between two digits, which Python skips in a number. */
static bool is_skipped(struct word word, size_t at)
{
    return word.at[at] == '_' && at > 0 && is_digit(word.at[at - 1]) && at + 1 < word.size &&
           is_digit(word.at[at + 1]);
}

/* Read a whole number with an optional sign. A number that is too large becomes the largest one,
 * which is no pid and no start time. Return false if the word is no number. */
static bool parse_integer(struct word word, long long *value)
{
    bool negative = word.size > 0 && *word.at == '-';
    size_t at = word.size > 0 && (*word.at == '-' || *word.at == '+') ? 1 : 0;
    if (at == word.size)
        return false;
    *value = 0;
    for (; at < word.size; at++) {
        if (is_skipped(word, at))
            continue;
        if (!is_digit(word.at[at]))
            return false;
        int digit = word.at[at] - '0';
        *value = *value > (LLONG_MAX - digit) / 10 ? LLONG_MAX : *value * 10 + digit;
    }
    if (negative)
        *value = -*value;
    return true;
}

/* Read a number as Python's `float` does. Return false if the word is none. */
static bool parse_float(struct word word, double *value)
{
    char copy[129], *end;
    size_t size = 0;
    if (word.size == 0 || word.size >= sizeof copy)
        return false;
    for (size_t at = 0; at < word.size; at++)
        if (!is_skipped(word, at))
            copy[size++] = word.at[at];
    copy[size] = '\0';
    /* strtod also accepts hexadecimal numbers and a text after "nan"; Python does not. */
    if (strpbrk(copy, "xX(") != NULL)
        return false;
    *value = strtod(copy, &end);
    return end == copy + size;
}

/* --- sets and lists of pids */

static bool has(const struct pid_set *set, long long pid)
{
    return set->bits != NULL && pid > 0 && pid < PID_LIMIT && set->bits[pid / 8] >> pid % 8 & 1;
}

/* Add a pid to the set. Return whether it is new. */
static bool add(struct pid_set *set, long long pid)
{
    if (pid <= 0 || pid >= PID_LIMIT || has(set, pid))
        return false;
    if (set->bits == NULL && (set->bits = calloc(PID_LIMIT / 8, 1)) == NULL)
        die("allocate memory");
    set->bits[pid / 8] |= (unsigned char)(1 << pid % 8);
    set->count++;
    return true;
}

static void empty(struct pid_set *set)
{
    free(set->bits);
    *set = (struct pid_set){0};
}

static void push(struct pids *list, pid_t pid)
{
    if (list->size == list->room) {
        list->room = 2 * list->room + 16;
        list->each = resized(list->each, list->room, sizeof *list->each);
    }
    list->each[list->size++] = pid;
}

static int compare(const void *one, const void *other)
{
    pid_t left = *(const pid_t *)one, right = *(const pid_t *)other;
    return (left > right) - (left < right);
}

/* --- the system (`perdure.host.system.linux`) */

static double boottime(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Read state, parent and start time of a process from /proc/PID/stat. Return false if it is gone. */
static bool stat_process(const char *pid, struct stat_of *found)
{
    char path[64];
    struct buffer text = {0};
    snprintf(path, sizeof path, "/proc/%s/stat", pid);
    bool whole = read_file(path, 4096, &text);
    /* The name of the program may contain spaces and parentheses. */
    char *fields = whole ? memrchr(text.data, ')', text.size) : NULL;
    bool known = fields != NULL;
    if (known) {
        struct word rest = {fields + 1, text.size - (size_t)(fields + 1 - text.data)}, field[20];
        long long parent = 0;
        for (int at = 0; at < 20; at++)
            field[at] = next_word(&rest);
        known = parse_integer(field[1], &parent) && parse_integer(field[17], &found->threads) &&
                parse_integer(field[19], &found->start);
        found->state = *field[0].at;
        found->parent = (pid_t)parent;
    }
    discard(&text);
    return known;
}

static bool stat_pid(long long pid, struct stat_of *found)
{
    char name[32];
    snprintf(name, sizeof name, "%lld", pid);
    return stat_process(name, found);
}

static bool is_dead(char state)
{
    return state == 'Z' || state == 'X';
}

/* Return whether the process with this pid and start time is alive. If only its first thread has
 * ended and other threads still run, it is. */
static bool lives(long long pid, long long start)
{
    struct stat_of found;
    if (pid <= 0 || pid >= PID_LIMIT || !stat_pid(pid, &found) || found.start != start)
        return false;
    return !is_dead(found.state) || found.threads > 1;
}

/* Write the number of this process's pid namespace into `name`; "" if it cannot be read. */
static void namespace(char *name, size_t size)
{
    char target[64];
    ssize_t got = readlink("/proc/self/ns/pid", target, sizeof target - 1);
    target[got > 0 ? got : 0] = '\0';
    char *number = strchr(target, '[');
    snprintf(name, size, "%s", number ? number + 1 : "");
    name[strcspn(name, "]")] = '\0';
}

static bool is_decimal(const char *name)
{
    return *name != '\0' && strspn(name, "0123456789") == strlen(name);
}

/* List all processes that are visible from this one. */
static void list_processes(struct pids *found)
{
    DIR *entries = opendir("/proc");
    if (entries == NULL)
        die("read /proc");
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        long long pid = 0;
        struct word name = {entry->d_name, strlen(entry->d_name)};
        if (is_decimal(entry->d_name) && parse_integer(name, &pid) && pid < PID_LIMIT)
            push(found, (pid_t)pid);
    }
    closedir(entries);
}

/* List the direct children of this process, including ended ones. The pid of a child cannot be
 * reused before this process reaps the child. */
static void children(struct pids *found)
{
    struct buffer text = {0};
    if (read_file("/proc/thread-self/children", NO_CAP, &text)) {
        struct word rest = {text.data, text.size};
        long long pid;
        while (parse_integer(next_word(&rest), &pid))
            push(found, (pid_t)pid);
    } else if (errno == ENOENT) { /* a kernel without CONFIG_PROC_CHILDREN */
        struct pids all = {0};
        struct stat_of known;
        list_processes(&all);
        for (size_t at = 0; at < all.size; at++)
            if (stat_pid(all.each[at], &known) && known.parent == getpid())
                push(found, all.each[at]);
        free(all.each);
    } else {
        die("read its children");
    }
    discard(&text);
}

/* Prepare a process that has the service's group (`perdure.host.privileges`) for starting agents: it
 * must be able to read its own /proc/self, and setgid bits must have no effect below it (see
 * `settle_groups` in linux.py). */
static void settle_groups(void)
{
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static void hand_down_limit(rlim_t value)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_LOCKS, &limit) != 0)
        die("read the resource limit");
    if (limit.rlim_max != RLIM_INFINITY)
        return;
    limit.rlim_cur = value;
    if (setrlimit(RLIMIT_LOCKS, &limit) != 0)
        die("set the resource limit");
}

static void close_from(int lowest)
{
    DIR *entries = opendir("/proc/self/fd");
    if (entries == NULL)
        die("list its descriptors");
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        int fd = is_decimal(entry->d_name) ? atoi(entry->d_name) : -1;
        if (fd >= lowest && fd != dirfd(entries))
            close(fd);
    }
    closedir(entries);
}

/* Wait for one of these signals, which must be blocked. Return its number, or 0 after the timeout. */
static int wait_signal(bool also_stop, double timeout_s)
{
    sigset_t numbers;
    sigemptyset(&numbers);
    sigaddset(&numbers, SIGCHLD);
    if (also_stop)
        sigaddset(&numbers, SIGTERM);
    time_t whole = (time_t)timeout_s;
    struct timespec timeout = {whole, (long)((timeout_s - (double)whole) * 1e9)};
    int got = sigtimedwait(&numbers, NULL, &timeout);
    return got > 0 ? got : 0;
}

/* --- the agent's limits */

/* Reap all ended children. Return whether any child is still running. `status`: set to the wait
 * status of `leader` if this call reaped it. */
static bool reap(pid_t leader, int *status)
{
    for (;;) {
        int ended;
        pid_t pid = waitpid(-1, &ended, WNOHANG);
        if (pid < 0 && errno == EINTR)
            continue;
        if (pid <= 0)
            return pid == 0;
        if (pid == leader)
            *status = ended;
    }
}

static bool is_utf8(struct word word);

/* Return until when the agent may work, when it is killed after that, and whether it must not work
 * without its supervisor (see `lease` in shim.py). */
static struct lease read_lease(double now)
{
    struct buffer text = {0};
    struct lease found = {INFINITY, INFINITY, false};
    if (!read_file("lease", 128, &text)) {
        discard(&text);
        return found;
    }
    struct word rest = {text.data, text.size}, follower[4] = {{0}};
    struct word until = next_word(&rest), end_by = next_word(&rest);
    size_t words = 0;
    while (words < 4 && (follower[words] = next_word(&rest)).size > 0)
        words++;
    long long pid = 0, start = 0;
    char own[64];
    namespace(own, sizeof own);
    bool valid = parse_float(until, &found.until) && parse_float(end_by, &found.end_by);
    if (valid && words == 3 && !same(follower[2], own)) {
        /* The supervisor's process cannot be checked from a container with another pid namespace. */
        valid = is_utf8(follower[2]);
    } else if (valid && words == 3) {
        valid = parse_integer(follower[0], &pid) && parse_integer(follower[1], &start);
        found.followed = true;
        if (valid && !lives(pid, start)) {
            found.until = now;
            if (now + ALONE_GRACE_S < found.end_by)
                found.end_by = now + ALONE_GRACE_S;
        }
    }
    if (!valid) /* The file is being written: allow one more second. */
        found = (struct lease){now + 1.0, now + 1.0, false};
    discard(&text);
    return found;
}

/* Remove the white space at both ends, as Python's `str.strip` does for ASCII. */
static struct word stripped(const struct buffer *text)
{
    struct word found = {text->data, text->size};
    while (found.size > 0 && (is_space(*found.at) || (*found.at >= 0x1c && *found.at <= 0x1f)))
        found.at++, found.size--;
    while (found.size > 0) {
        char last = found.at[found.size - 1];
        if (!is_space(last) && !(last >= 0x1c && last <= 0x1f))
            break;
        found.size--;
    }
    return found;
}

static bool is_identifier(struct word word)
{
    for (size_t at = 0; at < word.size; at++) {
        char letter = word.at[at], lower = letter | 0x20;
        bool begins = (lower >= 'a' && lower <= 'z') || letter == '_';
        if (!begins && (at == 0 || !is_digit(letter)))
            return false;
    }
    return word.size > 0;
}

/* Return the cause that the supervisor wrote to the file `cause`; `stopped` if there is none. */
static const char *stop_cause(void)
{
    static char cause[65];
    struct buffer text = {0};
    snprintf(cause, sizeof cause, "stopped");
    if (read_file("cause", 64, &text)) {
        struct word word = stripped(&text);
        if (is_identifier(word))
            snprintf(cause, sizeof cause, "%.*s", (int)word.size, word.at);
    }
    discard(&text);
    return cause;
}

/* Return whether this is what to do with processes that outlive the agent. */
static bool leftover_policy_is(const char *policy)
{
    struct buffer text = {0};
    bool found = read_file("leftover", 16, &text) && same(stripped(&text), policy);
    discard(&text);
    return found;
}

/* Read the pids of processes that must not be ended with the agent into `found`. Return whether
 * there are any words in the file, all of them numbers. */
static bool kept(struct pid_set *found)
{
    struct buffer text = {0};
    bool valid = read_file("kept", KEPT_CAP, &text) && text.size < KEPT_CAP;
    struct word rest = {text.data, valid ? text.size : 0}, word;
    bool any = false;
    while (valid && (word = next_word(&rest)).size > 0) {
        long long pid;
        valid = parse_integer(word, &pid);
        if (valid)
            add(found, pid);
        any = true;
    }
    if (!valid)
        empty(found);
    discard(&text);
    return valid && any;
}

static bool has_kept(void)
{
    struct pid_set found = {0};
    bool any = kept(&found);
    empty(&found);
    return any;
}

/* Send a signal to a descendant of this process. Errors are ignored: a process of another user
 * cannot be signaled, and the shim waits until it ends by itself. */
static void send(pid_t pid, int number)
{
    kill(pid, number);
}

static double at_least(double value, double least)
{
    return value > least ? value : least;
}

static double at_most(double value, double most)
{
    return value < most ? value : most;
}

static bool is_stop_pending(void)
{
    sigset_t pending;
    return sigpending(&pending) == 0 && sigismember(&pending, SIGTERM) == 1;
}

/* Return by how many bytes the larger output file may still grow. */
static long long output_room(const int outputs[2], long long cap)
{
    long long size = 0;
    for (int at = 0; at < 2; at++) {
        struct stat known;
        if (fstat(outputs[at], &known) != 0)
            die("read the size of the output");
        if (known.st_size > size)
            size = known.st_size;
    }
    return cap - size;
}

/* Wait until the agent (`leader`) has ended, and end it if a limit or a stop request requires that.
 * Return the cause, and set the wait status. */
static const char *watch(pid_t leader, const int outputs[2], struct limits limits, int *status)
{
    const char *cause = "exited";
    double kill_at = INFINITY, deadline = INFINITY;
    bool stop_asked = false, exited = true, lapsed = false;
    if (limits.deadline_s > 0)
        deadline = boottime() + limits.deadline_s;
    for (;;) {
        *status = -1;
        reap(leader, status);
        if (*status != -1) /* If a stop request arrived just before the agent ended by itself, the
                              request still counts as the cause of the end. */
            return exited && (stop_asked || is_stop_pending()) ? stop_cause() : cause;
        double now = boottime();
        struct lease lease = read_lease(now);
        if (!lapsed && now >= lease.until) {
            /* When the lease has expired, another host may take over the task. So no process of the
             * task may still run here. */
            if (kill_at > lease.end_by)
                send(leader, SIGTERM);
            cause = "lapsed", lapsed = true, exited = false;
            deadline = INFINITY;
            kill_at = at_most(lease.end_by, kill_at);
        }
        long long room = output_room(outputs, limits.cap);
        if (exited && (stop_asked || now >= deadline)) {
            cause = stop_asked ? stop_cause() : "deadline";
            exited = strcmp(cause, "exited") == 0, lapsed = strcmp(cause, "lapsed") == 0;
            /* KILL if some commands have to be kept: on SIGTERM the agent would end its commands
             * too. */
            send(leader, has_kept() ? SIGKILL : SIGTERM);
            bool over = strcmp(cause, OVER) == 0;
            deadline = INFINITY;
            kill_at = now + (over ? at_most(limits.grace_s, OVER_GRACE_S) : limits.grace_s);
        }
        if (room <= 0) {
            cause = exited ? "flooded" : cause;
            exited = false, kill_at = now;
        }
        if (now >= kill_at)
            send(leader, SIGKILL);
        double pause = at_least((double)room / FLOOD_RATE, 0.02);
        pause = at_most(pause, lease.followed ? FOLLOWED_S : WATCH_S);
        pause = at_most(pause, at_least(deadline - now, 0.02));
        pause = at_most(pause, at_least(kill_at - now, 0.02));
        if (lease.until > now)
            pause = at_most(pause, at_least(lease.until - now, 0.02));
        if (wait_signal(true, pause) == SIGTERM)
            stop_asked = true;
    }
}

/* --- what the agent left behind */

/* List the processes that are alive and have no children, out of `tops` and their descendants. These
 * are the commands themselves, without the shells that started them. */
static void commands(const struct pids *tops, struct pids *found)
{
    struct pids all = {0}, parents = {0};
    struct pid_set family = {0}, has_child = {0}, alive = {0};
    add(&family, getpid());
    for (size_t at = 0; at < tops->size; at++)
        add(&family, tops->each[at]);
    list_processes(&all);
    for (size_t at = 0; at < all.size; at++) {
        struct stat_of known = {0};
        bool lives_on = stat_pid(all.each[at], &known) && !is_dead(known.state);
        push(&parents, lives_on ? known.parent : 0);
        if (lives_on) {
            add(&alive, all.each[at]);
            add(&has_child, known.parent);
        }
    }
    for (bool grown = true; grown;) {
        grown = false;
        for (size_t at = 0; at < all.size; at++)
            if (has(&alive, all.each[at]) && has(&family, parents.each[at]))
                grown = add(&family, all.each[at]) || grown;
    }
    for (size_t at = 0; at < all.size; at++) {
        pid_t pid = all.each[at];
        if (pid != getpid() && has(&alive, pid) && has(&family, pid) && !has(&has_child, pid))
            push(found, pid);
    }
    if (found->size > 0)
        qsort(found->each, found->size, sizeof *found->each, compare);
    free(all.each);
    free(parents.each);
    empty(&family);
    empty(&has_child);
    empty(&alive);
}

/* Read one character of a text in UTF-8. Return its size in bytes. If it is invalid, it becomes
 * U+FFFD, and its size is that of the longest beginning of a valid one, as in Python's `replace`. */
static size_t decode(const unsigned char *at, size_t size, uint32_t *code)
{
    size_t more = *at < 0x80 ? 0 : *at < 0xe0 ? 1 : *at < 0xf0 ? 2 : 3;
    unsigned char low = 0x80, high = 0xbf;
    *code = 0xfffd;
    if ((*at >= 0x80 && *at < 0xc2) || *at > 0xf4)
        return 1;
    if (*at == 0xe0)
        low = 0xa0;
    else if (*at == 0xed)
        high = 0x9f;
    else if (*at == 0xf0)
        low = 0x90;
    else if (*at == 0xf4)
        high = 0x8f;
    uint32_t value = more == 0 ? *at : *at & (0x3fu >> more);
    for (size_t next = 1; next <= more; next++) {
        if (next >= size || at[next] < low || at[next] > high)
            return next;
        value = value << 6 | (at[next] & 0x3f);
        low = 0x80, high = 0xbf;
    }
    *code = value;
    return more + 1;
}

static bool is_utf8(struct word word)
{
    for (size_t at = 0; at < word.size;) {
        uint32_t code;
        size_t size = decode((const unsigned char *)word.at + at, word.size - at, &code);
        if (code == 0xfffd && size < 3)
            return false;
        if (code == 0xfffd && memcmp(word.at + at, "\xef\xbf\xbd", 3) != 0)
            return false;
        at += size;
    }
    return true;
}

/* Return whether Python's `str.strip` removes this character. */
static bool is_white(uint32_t code)
{
    return (code >= 0x09 && code <= 0x0d) || (code >= 0x1c && code <= 0x20) || code == 0x85 ||
           code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) ||
           code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

/* Add one character of a JSON string, in ASCII, as Python's `json.dumps` writes it. */
static void append_json(struct buffer *to, uint32_t code)
{
    static const char plain[] = "\"\\\n\r\t\f\b", escape[] = "\"\\nrtfb";
    const char *special = code > 0 && code < 0x80 ? strchr(plain, (int)code) : NULL;
    if (special != NULL)
        append(to, "\\%c", escape[special - plain]);
    else if (code >= ' ' && code <= '~')
        append(to, "%c", (int)code);
    else if (code < 0x10000)
        append(to, "\\u%04x", (unsigned)code);
    else
        append(to, "\\u%04x\\u%04x", (unsigned)(0xd7c0 + (code >> 10)),
               (unsigned)(0xdc00 + (code & 0x3ff)));
}

/* Add a command line as a JSON string: NUL becomes a space, and the white space at both ends is
 * removed. Return false if nothing is left, and add nothing. */
static bool append_command(struct buffer *to, const struct buffer *command)
{
    uint32_t codes[4 * COMMAND_CAP];
    size_t size = 0, first = 0;
    for (size_t at = 0; at < command->size && size < 4 * COMMAND_CAP; size++) {
        const unsigned char *next = (const unsigned char *)command->data + at;
        at += decode(next, command->size - at, &codes[size]);
        if (codes[size] == 0)
            codes[size] = ' ';
    }
    while (first < size && is_white(codes[first]))
        first++;
    while (size > first && is_white(codes[size - 1]))
        size--;
    if (size == first)
        return false;
    append(to, "\"");
    for (size_t at = first; at < size && at < first + COMMAND_CAP; at++)
        append_json(to, codes[at]);
    append(to, "\"");
    return true;
}

/* Add the pid, the command line and the age of each process as JSON, for at most `LEFT_CAP` of
 * them. */
static void describe(const struct pids *found, struct buffer *to)
{
    for (size_t at = 0; at < found->size && at < LEFT_CAP; at++) {
        struct stat_of known;
        struct buffer command = {0}, quoted = {0};
        char path[64];
        bool seen = stat_pid(found->each[at], &known);
        snprintf(path, sizeof path, "/proc/%d/cmdline", (int)found->each[at]);
        if (read_file(path, 4 * COMMAND_CAP, &command) && append_command(&quoted, &command) && seen) {
            double age_s = boottime() - (double)known.start / (double)sysconf(_SC_CLK_TCK);
            append(to, "%s{\"pid\": %d, \"command\": %s, \"age_s\": %.1f}", to->size ? ", " : "",
                   (int)found->each[at], quoted.data, age_s);
        }
        discard(&command);
        discard(&quoted);
    }
}

/* Reap ended children. Return whether any process of the attempt is still running, and list the
 * processes to signal. `spared`: pids of processes that are left alone. */
static bool remaining(const struct pid_set *spared, struct pids *found)
{
    int status;
    struct pids all = {0};
    found->size = 0;
    if (!reap(0, &status))
        return false;
    children(&all);
    for (size_t at = 0; at < all.size; at++)
        if (!has(spared, all.each[at]))
            push(found, all.each[at]);
    free(all.each);
    return true;
}

/* Describe the processes that outlived the agent. If `leftover` is `wait`, first wait until they
 * have ended, at most until the deadline or a stop request. */
static void outlived(double deadline, struct left *left)
{
    const struct pid_set none = {0};
    struct pids tops = {0}, found = {0};
    bool any = remaining(&none, &tops);
    if (any) {
        double until = boottime() + SETTLE_S;
        if (leftover_policy_is("wait"))
            until = deadline;
        while ((any = remaining(&none, &tops)) && boottime() < until)
            if (wait_signal(true, 0.02) == SIGTERM)
                break;
    }
    if (any)
        commands(&tops, &found);
    describe(&found, &left->described);
    left->count = found.size;
    free(tops.each);
    free(found.each);
}

/* End everything that the agent left behind, until only the spared processes remain. Return the
 * number of processes that were signaled. */
static size_t sweep(double grace_s, const struct pid_set *spared)
{
    double kill_at = boottime() + grace_s;
    struct pid_set asked = {0};
    struct pids found = {0};
    while (remaining(spared, &found)) {
        bool kill_now = boottime() >= kill_at;
        if (found.size == 0 && spared->count > 0)
            break;
        for (size_t at = 0; at < found.size; at++)
            if (add(&asked, found.each[at]) || kill_now)
                send(found.each[at], kill_now ? SIGKILL : SIGTERM);
        wait_signal(false, 0.02);
    }
    size_t count = asked.count;
    empty(&asked);
    free(found.each);
    return count;
}

/* --- the start of the agent */

/* Read the environment that this process was started with, as an array. It is read from /proc: the C
 * library removes variables such as TMPDIR from its own array in a process that has the service's
 * group (AT_SECURE), and the agent must get them. */
static char **environment(void)
{
    struct buffer text = {0};
    if (!read_file("/proc/self/environ", NO_CAP, &text))
        die("read its environment");
    char **entries = NULL;
    size_t size = 0, room = 0;
    for (char *at = text.data; at < text.data + text.size; at += strlen(at) + 1) {
        if (size + 1 >= room)
            entries = resized(entries, room = 2 * room + 16, sizeof *entries);
        if (*at != '=' && strchr(at, '='))
            entries[size++] = at;
    }
    entries = resized(entries, size + 1, sizeof *entries);
    entries[size] = NULL;
    return entries;
}

static const char *variable(char **entries, const char *name)
{
    size_t size = strlen(name);
    for (; *entries != NULL; entries++)
        if (strncmp(*entries, name, size) == 0 && (*entries)[size] == '=')
            return *entries + size + 1;
    return NULL;
}

/* Execute the program, as posix_spawnp(3) of glibc does: it is searched for in the agent's PATH, and
 * never run by a shell. Return only if that fails, with errno. */
static void execute(char **argv, char **entries)
{
    const char *path = variable(entries, "PATH"), *name = argv[0];
    if (*name == '\0' || strchr(name, '/') != NULL) {
        execve(name, argv, entries);
        return;
    }
    if (strlen(name) > NAME_MAX) {
        errno = ENAMETOOLONG;
        return;
    }
    if (path == NULL)
        path = "/bin:/usr/bin";
    char place[PATH_MAX + NAME_MAX + 2];
    bool forbidden = false;
    errno = ENOENT;
    for (bool more = true; more;) {
        size_t size = strcspn(path, ":");
        if (size < PATH_MAX) {
            snprintf(place, sizeof place, "%.*s%s%s", (int)size, path, size ? "/" : "", name);
            execve(place, argv, entries);
            forbidden = forbidden || errno == EACCES;
            if (errno != EACCES && errno != ENOENT && errno != ESTALE && errno != ENOTDIR &&
                errno != ENODEV && errno != ETIMEDOUT)
                return;
        }
        more = path[size] == ':';
        path += size + 1;
    }
    if (forbidden)
        errno = EACCES;
}

/* Give the agent default handlers of all signals. The system call is used directly: the C library
 * keeps some signals for itself, and would leave them ignored. All zero is SIG_DFL, whatever the
 * order of the fields is. */
static void reset_signals(void)
{
    const unsigned long defaults[16] = {0};
    for (int number = 1; number <= 64; number++)
        syscall(SYS_rt_sigaction, number, defaults, NULL, 8);
}

/* Become the agent. If that fails, write the reason to `report` and end. */
static _Noreturn void become_agent(struct launch *launch, char **entries, const int files[3],
                                   int report)
{
    struct failure failure = {false, 0};
    reset_signals();
    setsid();
    /* Drops the service's group, if this process has it (see perdure.host.privileges). */
    bool ready = seteuid(getuid()) == 0 && setegid(getgid()) == 0;
    for (int to = 0; to < 3 && ready; to++)
        ready = dup2(files[to], to) >= 0;
    if (ready && chdir(launch->cwd) != 0) {
        failure.at_cwd = true;
        ready = false;
    }
    if (ready) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execute(launch->argv, entries);
    }
    failure.number = errno;
    if (write(report, &failure, sizeof failure) < 0)
        _exit(126);
    _exit(127);
}

/* Wait until the new process has become the agent. Return false, with the reason, if it failed. */
static bool has_begun(pid_t pid, int report, struct failure *failure)
{
    ssize_t got;
    while ((got = read(report, failure, sizeof *failure)) < 0 && errno == EINTR)
        ;
    if (got != (ssize_t)sizeof *failure)
        return true;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return false;
}

/* Start the agent in a session of its own, with default signal handlers and the environment that
 * this process was started with. Return its pid, or -1 with the reason. */
static pid_t spawn(struct launch *launch, char **entries, const int outputs[2],
                   struct failure *failure)
{
    int ends[2] = {-1, -1};
    pid_t pid = -1;
    int input = open("stdin", O_RDONLY | O_CLOEXEC);
    *failure = (struct failure){false, 0};
    if (input < 0 || pipe2(ends, O_CLOEXEC) != 0 || (pid = fork()) < 0)
        failure->number = errno;
    if (pid == 0) {
        const int files[3] = {input, outputs[0], outputs[1]};
        become_agent(launch, entries, files, ends[1]);
    }
    if (ends[1] >= 0)
        close(ends[1]);
    if (pid > 0 && !has_begun(pid, ends[0], failure))
        pid = -1;
    if (ends[0] >= 0)
        close(ends[0]);
    if (input >= 0)
        close(input);
    return pid;
}

static void reserve(const char *name)
{
    char spaces[RESERVED];
    memset(spaces, ' ', sizeof spaces);
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || !put(fd, spaces, sizeof spaces) || close(fd) != 0)
        die("reserve space for its records");
}

/* Set up what the agent inherits (mark, descriptors), make this process a subreaper, and write
 * `shim.json`. Return the environment. */
static char **prepare(const struct launch *launch)
{
    struct buffer boot = {0}, text = {0};
    struct stat_of known = {0};
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0)
        die("become a subreaper");
    if (getgid() != getegid())
        settle_groups();
    hand_down_limit(launch->mark);
    close_from(1 + (launch->locked ? LOCK_FD : LAUNCH_FD));
    if (!stat_process("self", &known))
        known.start = 0;
    if (!read_file("/proc/sys/kernel/random/boot_id", 128, &boot))
        die("read the boot id");
    char **entries = environment();
    const char *mark = variable(entries, "PERDURE_ATTEMPT");
    if (mark == NULL) {
        errno = EINVAL;
        die("find PERDURE_ATTEMPT in its environment");
    }
    struct word id = stripped(&boot);
    append(&text, "{\"pid\": %d, \"starttime\": %lld, \"boot_id\": \"%.*s\", \"mark\": \"%s\"}\n",
           (int)getpid(), known.start, (int)id.size, id.at, mark);
    if (!write_once("shim.json", &text))
        die("write shim.json");
    reserve("agent.json.part");
    reserve("exit.json.part");
    discard(&boot);
    discard(&text);
    return entries;
}

/* Return the next field of the file `launch`, and move behind it. */
static char *next_field(char **at, const char *end)
{
    if (*at > end) {
        errno = EINVAL;
        die("read launch");
    }
    char *found = *at;
    *at += strlen(found) + 1;
    return found;
}

/* Read the file `launch`: its fields are separated by NUL, and the last ones are the argv. */
static struct launch read_launch(void)
{
    struct launch launch = {0};
    struct buffer text = {0};
    if (!read_fd(LAUNCH_FD, NO_CAP, &text))
        die("read launch");
    char *at = text.data;
    const char *end = text.data + text.size;
    launch.limits.deadline_s = strtod(next_field(&at, end), NULL);
    launch.limits.grace_s = strtod(next_field(&at, end), NULL);
    launch.limits.cap = strtoll(next_field(&at, end), NULL, 10);
    launch.mark = (rlim_t)strtoull(next_field(&at, end), NULL, 10);
    launch.locked = strcmp(next_field(&at, end), "1") == 0;
    launch.cwd = next_field(&at, end);
    size_t count = 0;
    do {
        launch.argv = resized(launch.argv, count + 2, sizeof *launch.argv);
        launch.argv[count++] = next_field(&at, end);
    } while (at <= end);
    launch.argv[count] = NULL;
    return launch;
}

/* --- the end */

/* Write a message of perdure to the agent's stderr file. Errors, such as a full disk, are ignored. */
__attribute__((format(printf, 2, 3))) static void write_error(int file, const char *format, ...)
{
    va_list words;
    va_start(words, format);
    vdprintf(file, format, words);
    va_end(words);
}

static void append_field(struct buffer *to, const char *name, bool known, int value)
{
    append(to, "\"%s\": ", name);
    if (known)
        append(to, "%d, ", value);
    else
        append(to, "null, ");
}

/* Write exit.json. The output is flushed to the disk first, so if exit.json exists, the whole output
 * is on the disk. `code`: the exit code, or the negative number of a signal. */
static void conclude(const int outputs[2], int code, const char *cause, long long ended,
                     size_t killed, const struct left *left)
{
    struct buffer text = {0};
    if (fdatasync(outputs[0]) != 0 || fdatasync(outputs[1]) != 0)
        die("flush the output");
    append(&text, "{");
    append_field(&text, "code", code >= 0, code);
    append_field(&text, "signal", code < 0, -code);
    append(&text, "\"leader_ended\": %lld, \"survivors_killed\": %zu, \"cause\": \"%s\"", ended,
           killed, cause);
    if (left->count > 0)
        append(&text, ", \"left\": [%s], \"left_count\": %zu",
               left->described.size ? left->described.data : "", left->count);
    append(&text, "}\n");
    if (!write_once("exit.json", &text))
        die("write exit.json");
}

/* Return the time between TERM and KILL, in seconds, for processes that the agent left behind. */
static double orphan_grace(const char *cause, int code, double grace_s)
{
    bool over = strcmp(cause, OVER) == 0, exited = strcmp(cause, "exited") == 0;
    if (strcmp(cause, "lapsed") == 0 || (code == -SIGKILL && !exited && !over))
        return 0;
    return at_most(grace_s, over ? OVER_GRACE_S : ORPHAN_GRACE_S);
}

/* Write agent.json. Without this record no supervisor could find the agent, so it must not run. */
static void record(pid_t leader, int stderr_file)
{
    struct stat_of known;
    struct buffer text = {0};
    long long started = stat_pid(leader, &known) ? known.start : 0;
    append(&text, "{\"pid\": %d, \"starttime\": %lld}\n", (int)leader, started);
    if (!write_once("agent.json", &text)) {
        const char *why = error_text(errno);
        send(leader, SIGKILL);
        write_error(stderr_file, "perdure: ended, because its record cannot be written: %s\n", why);
    }
    discard(&text);
}

static void report_failure(const struct launch *launch, struct failure failure,
                           const int outputs[2])
{
    const struct left nothing = {0};
    int code = failure.number == ENOENT && !failure.at_cwd ? 127 : 126;
    write_error(outputs[1], "perdure: cannot %s %s: %s\n", failure.at_cwd ? "enter" : "start",
                failure.at_cwd ? launch->cwd : launch->argv[0], error_text(failure.number));
    conclude(outputs, code, "exited", now_ms(), 0, &nothing);
}

/* Wait for the end of the agent, end what it left behind, and write exit.json. */
static void accompany(pid_t leader, const int outputs[2], struct limits limits)
{
    struct left left = {0};
    struct pid_set spared = {0};
    int status;
    double began = boottime();
    const char *cause = watch(leader, outputs, limits, &status);
    long long ended = now_ms();
    int code = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    kept(&spared);
    if (strcmp(cause, "exited") == 0) {
        outlived(limits.deadline_s > 0 ? began + limits.deadline_s : INFINITY, &left);
        if (leftover_policy_is("keep")) {
            const struct pid_set none = {0};
            struct pids found = {0};
            remaining(&none, &found);
            empty(&spared);
            for (size_t at = 0; at < found.size; at++)
                add(&spared, found.each[at]);
            free(found.each);
        }
    }
    size_t killed = sweep(orphan_grace(cause, code, limits.grace_s), &spared);
    conclude(outputs, code, cause, ended, killed, &left);
}

static int open_output(const char *name)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        die("open the output");
    return fd;
}

int main(int argc, char **argv)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    if (argc != 2)
        errno = EINVAL;
    if (argc != 2 || chdir(argv[1]) != 0)
        die("enter its directory");
    struct launch launch = read_launch();
    fcntl(LAUNCH_FD, F_SETFD, FD_CLOEXEC);
    if (launch.locked && fcntl(LOCK_FD, F_SETFD, FD_CLOEXEC) != 0)
        die("use the lock");
    char **entries = prepare(&launch);
    const int outputs[2] = {open_output("stdout"), open_output("stderr")};
    struct failure failure;
    pid_t leader = spawn(&launch, entries, outputs, &failure);
    if (leader < 0) {
        report_failure(&launch, failure, outputs);
        _exit(0);
    }
    record(leader, outputs[1]);
    accompany(leader, outputs, launch.limits);
    _exit(0);
}

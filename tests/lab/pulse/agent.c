/* Speaks the wire protocol of qemu-ga (QEMU, docs/interop/qemu-ga-ref): a line of JSON for each
 * command and each answer; 0xff resets the reader and begins the answer to guest-sync-delimited.
 * Like qemu-ga it refuses all but a few commands while it has its file systems frozen. */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/rtc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static const char CHANNEL[] = "org.qemu.guest_agent.0";
static const char *const WHILE_FROZEN[] = {"guest-sync-delimited", "guest-sync",           "guest-ping", "guest-info",
                                           "guest-fsfreeze-status", "guest-fsfreeze-thaw"};
static const char *const OTHERS[] = {"guest-fsfreeze-freeze", "guest-get-time", "guest-set-time"};

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* The port that has the agent's name; there is no udev to make a link of that name. */
static int open_port(void)
{
    struct dirent *entry;
    int port = -1;
    DIR *folder = opendir("/sys/class/virtio-ports");
    while (folder && port < 0 && (entry = readdir(folder))) {
        char path[300], name[64] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t size = read(fd, name, sizeof name - 1);
        close(fd);
        if (size > 0 && strncmp(name, CHANNEL, sizeof CHANNEL - 1) == 0) {
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            port = open(path, O_RDWR | O_CLOEXEC);
        }
    }
    if (folder)
        closedir(folder);
    return port;
}

/* Finds "key": "text" or "key": number in a line; enough for the commands there are. */
static const char *value_of(const char *line, const char *key)
{
    char quoted[40];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    const char *at = strstr(line, quoted);
    return at ? at + strlen(quoted) + strspn(at + strlen(quoted), ": \t\"") : NULL;
}

static bool is_one_of(const char *command, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(command, names[i]) == 0)
            return true;
    return false;
}

static bool set_time(const char *line)
{
    const char *wanted = value_of(line, "time");
    struct timespec now = {0};
    if (wanted) {
        uint64_t ns = strtoull(wanted, NULL, 10);
        now.tv_sec = (time_t)(ns / 1000000000), now.tv_nsec = (long)(ns % 1000000000);
    } else { /* what `hwclock --hctosys` does for qemu-ga */
        struct rtc_time rtc;
        int fd = open("/dev/rtc0", O_RDONLY | O_CLOEXEC);
        int failed = ioctl(fd, RTC_RD_TIME, &rtc);
        close(fd);
        if (failed)
            return false;
        struct tm tm = {.tm_sec = rtc.tm_sec, .tm_min = rtc.tm_min, .tm_hour = rtc.tm_hour,
                        .tm_mday = rtc.tm_mday, .tm_mon = rtc.tm_mon, .tm_year = rtc.tm_year};
        now.tv_sec = timegm(&tm);
    }
    return clock_settime(CLOCK_REALTIME, &now) == 0;
}

static int list_commands(char *out, size_t size)
{
    int used = snprintf(out, size, "{\"return\": {\"version\": \"pulse\", \"supported_commands\": [");
    for (size_t i = 0; i < COUNT(WHILE_FROZEN) + COUNT(OTHERS); i++) {
        const char *name = i < COUNT(WHILE_FROZEN) ? WHILE_FROZEN[i] : OTHERS[i - COUNT(WHILE_FROZEN)];
        used += snprintf(out + used, size - (size_t)used,
                         "%s{\"name\": \"%s\", \"enabled\": true, \"success-response\": true}", i ? ", " : "", name);
    }
    return used + snprintf(out + used, size - (size_t)used, "]}}\n");
}

static int answer(const struct agent_hooks *hooks, const char *line, char *out, size_t size)
{
    char command[64] = "";
    const char *name = value_of(line, "execute"), *id = value_of(line, "id");
    struct timespec now;
    if (name)
        snprintf(command, sizeof command, "%.*s", (int)strcspn(name, "\""), name);
    if (!is_one_of(command, WHILE_FROZEN, COUNT(WHILE_FROZEN))) {
        const char *why = is_one_of(command, OTHERS, COUNT(OTHERS)) ? NULL : "The command has not been found";
        if (!why && hooks->is_frozen())
            why = "The command has been disabled: the agent is in frozen state";
        if (why)
            return snprintf(out, size, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"%s\"}}\n", why);
    }
    if (strncmp(command, "guest-sync", 10) == 0)
        return snprintf(out, size, "%s{\"return\": %lld}\n", strcmp(command, "guest-sync") ? "\xff" : "",
                        id ? strtoll(id, NULL, 10) : 0);
    if (strcmp(command, "guest-info") == 0)
        return list_commands(out, size);
    if (strcmp(command, "guest-fsfreeze-status") == 0)
        return snprintf(out, size, "{\"return\": \"%s\"}\n", hooks->is_frozen() ? "frozen" : "thawed");
    if (strcmp(command, "guest-fsfreeze-freeze") == 0)
        return snprintf(out, size, "{\"return\": %d}\n", hooks->freeze());
    if (strcmp(command, "guest-fsfreeze-thaw") == 0)
        return snprintf(out, size, "{\"return\": %d}\n", hooks->thaw());
    if (strcmp(command, "guest-get-time") == 0) {
        clock_gettime(CLOCK_REALTIME, &now);
        return snprintf(out, size, "{\"return\": %lld}\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    }
    if (strcmp(command, "guest-set-time") == 0 && !set_time(line))
        return snprintf(out, size, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no clock\"}}\n");
    return snprintf(out, size, "{\"return\": {}}\n");
}

static void send(int port, const char *text, int size)
{
    for (int done = 0; done < size;) {
        ssize_t wrote = write(port, text + done, (size_t)(size - done));
        if (wrote <= 0)
            return;
        done += (int)wrote;
    }
}

void *serve_agent(void *hooks)
{
    static char line[4096], out[4096];
    size_t used = 0;
    int port;
    while ((port = open_port()) < 0)
        usleep(1000000);
    for (;;) {
        unsigned char c;
        if (read(port, &c, 1) != 1) { /* nobody has the other end open */
            usleep(50000);
            used = 0;
        } else if (c == 0xff) {
            used = 0;
        } else if (c == '\n') {
            line[used] = 0;
            if (used)
                send(port, out, answer(hooks, line, out, sizeof out));
            used = 0;
        } else if (used < sizeof line - 1) {
            line[used++] = (char)c;
        }
    }
    return NULL;
}

// Log lines: off at first, to the callback that was set, else to stderr; a stderr that takes nothing does no harm.
#include "ranks.h"
#include <fcntl.h>
#include <unistd.h>

struct lines {
    int count;
    int32_t level;
    char last[512];
};

static void keep(int32_t level, const char *line, void *userdata) {
    struct lines *l = (struct lines *)userdata;
    l->count++;
    l->level = level;
    snprintf(l->last, sizeof l->last, "%s", line);
}

static void provoke(void) {
    CHECK_REFUSED(magi_comm_abort(NULL, NULL), MAGI_STATUS_NULL_POINTER, "comm is NULL");
}

// What the library writes to stderr while `run` runs.
static size_t stderr_of(void (*run)(void), char *text, size_t room) {
    FILE *file = tmpfile();
    CHECK(file != NULL);
    fflush(stderr);
    const int kept = dup(2);
    CHECK(kept >= 0 && dup2(fileno(file), 2) == 2);
    run();
    CHECK(dup2(kept, 2) == 2);
    close(kept);
    rewind(file);
    const size_t length = fread(text, 1, room - 1, file);
    text[length] = 0;
    fclose(file);
    return length;
}

static void *on_another_thread(void *data) {
    (void)data;
    CHECK_TEXT(magi_last_error_message(), "");
    provoke();
    return NULL;
}

int main(void) {
    struct lines first, second;
    char text[1024];
    memset(&first, 0, sizeof first);
    memset(&second, 0, sizeof second);
    CHECK_INT(stderr_of(provoke, text, sizeof text), 0);

    CHECK_OK(magi_log_set_callback(keep, &first, MAGI_LOG_LEVEL_ERROR));
    provoke();
    CHECK_INT(first.count, 1);
    CHECK_INT(first.level, MAGI_LOG_LEVEL_ERROR);
    CHECK_HAS(first.last, "magi_comm_abort: comm is NULL");
    CHECK(strchr(first.last, '\n') == NULL);
    join_thread(start_thread(on_another_thread, NULL));
    CHECK_INT(first.count, 2);
    CHECK_OK(magi_log_set_callback(keep, &second, MAGI_LOG_LEVEL_OFF));
    provoke();
    CHECK_OK(magi_log_set_callback(keep, &second, MAGI_LOG_LEVEL_WARNING));
    provoke();
    CHECK_INT(first.count, 2);
    CHECK_INT(second.count, 1);
    // A refused level changes nothing.
    CHECK_REFUSED(magi_log_set_callback(keep, &first, 7), MAGI_STATUS_INVALID_ENUM, "level is 7");
    CHECK_INT(second.count, 2);

    CHECK_OK(magi_log_set_callback(NULL, NULL, MAGI_LOG_LEVEL_ERROR));
    CHECK(stderr_of(provoke, text, sizeof text) > 0);
    CHECK_HAS(text, "libmagi_attn: magi_comm_abort: comm is NULL");
    CHECK(text[strlen(text) - 1] == '\n');
    const int full = open("/dev/full", O_WRONLY), kept = dup(2);
    if (full >= 0) {
        CHECK(dup2(full, 2) == 2);
        provoke();
        CHECK(dup2(kept, 2) == 2);
        close(full);
    }
    close(kept);
    CHECK_INT(second.count, 2);
    return 0;
}

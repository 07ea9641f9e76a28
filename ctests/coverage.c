// Every status code of the header is provoked by a C test that reads the message, and every function is called by one.
// memcheck off: reads text files, nothing of the library's memory.
#include "test.h"
#include <dirent.h>

enum { ROOM = 1 << 22 };

static char header[ROOM], tests[ROOM], checks[ROOM];

// Appends the file to `text`.
static void read_into(const char *path, char *text) {
    const size_t at = strlen(text);
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        FAIL("%s cannot be read", path);
    }
    const size_t length = fread(text + at, 1, ROOM - at - 1, file);
    CHECK(length > 0 && at + length < ROOM - 1);
    text[at + length] = 0;
    fclose(file);
}

// Appends to `checks` what is checked in `tests`: from CHECK_ERROR or CHECK_REFUSED, and from constants that they are
// given, up to the end of the statement.
static void collect_checks(void) {
    static const char *const starts[] = {"CHECK_ERROR(", "CHECK_REFUSED(", "const magi_status ", "CHANGED("};
    char *end = checks;
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        for (const char *at = tests; (at = strstr(at, starts[i])) != NULL;) {
            const size_t length = strcspn(at, ";");
            memcpy(end, at, length);
            end += length;
            *end++ = '\n';
            at += length;
        }
    }
    *end = 0;
}

// Whether `text` holds `name` as a whole word, followed by `next` (0: anything).
static int has_word(const char *text, const char *name, char next) {
    const size_t length = strlen(name);
    for (const char *at = text; (at = strstr(at, name)) != NULL; at += length) {
        const char after = at[length];
        const int longer = after == '_' || (after >= 'A' && after <= 'Z') || (after >= 'a' && after <= 'z');
        if (!longer && (next == 0 || after == next)) {
            return 1;
        }
    }
    return 0;
}

static int statuses(void) {
    int count = 0, absent = 0;
    for (const char *at = header; (at = strstr(at, " MAGI_STATUS_")) != NULL; at++) {
        char name[64];
        int code;
        if (sscanf(at, " %63[A-Z_] = %d", name, &code) != 2) {
            continue; // mentioned in a comment
        }
        count++;
        CHECK(strcmp(magi_status_string(code), "unknown status") != 0);
        if (code != MAGI_STATUS_OK && !has_word(checks, name, 0)) {
            fprintf(stderr, "%s is provoked by no test\n", name);
            absent++;
        }
    }
    CHECK_INT(count, 29);
    CHECK_TEXT(magi_status_string(1), "unknown status");
    CHECK_TEXT(magi_status_string(-1), "unknown status");
    return absent;
}

static int functions(void) {
    int count = 0, absent = 0;
    for (const char *at = header; (at = strstr(at, "magi_")) != NULL; at++) {
        char name[64];
        if (sscanf(at, "%63[a-z0-9_]", name) != 1 || at[strlen(name)] != '(' || at[-1] == '_') {
            continue;
        }
        count++;
        if (!has_word(tests, name, '(')) {
            fprintf(stderr, "%s is called by no test\n", name);
            absent++;
        }
    }
    CHECK(count >= 40);
    return absent;
}

int main(void) {
    char folder[1024], path[2048];
    CHECK(strlen(__FILE__) < sizeof folder);
    strcpy(folder, __FILE__);
    char *slash = strrchr(folder, '/');
    CHECK(slash != NULL);
    *slash = 0;
    snprintf(path, sizeof path, "%s/../include/magi_attn.h", folder);
    read_into(path, header);
    DIR *dir = opendir(folder);
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        const size_t length = strlen(entry->d_name);
        if (length > 2 && strcmp(entry->d_name + length - 2, ".c") == 0 && strcmp(entry->d_name, "coverage.c") != 0) {
            snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
            read_into(path, tests);
        }
    }
    closedir(dir);
    collect_checks();
    CHECK_INT(statuses() + functions(), 0);
    return 0;
}

/* Preloaded into a Redis of the fault suite: writes down how much of which file was on the disk after each
   sync, as "inode bytes" lines in the file that SYNCED names. What a crash of the machine would have left
   of a file is what the last of its lines says. While there is a file of that name with ".hold" behind it, no
   sync comes to its end. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int record(const char *name, int fd) {
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat file;
    const char *path = getenv("SYNCED");
    char hold[4096];
    snprintf(hold, sizeof hold, "%s.hold", path ? path : "");
    while (access(hold, F_OK) == 0) usleep(5000);
    /* Before the sync: what is written during it may be on the disk, or not. */
    int known = fstat(fd, &file) == 0 && S_ISREG(file.st_mode);
    int result = sync(fd);
    int out = result == 0 && known && path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (out >= 0) {
        dprintf(out, "%llu %lld\n", (unsigned long long)file.st_ino, (long long)file.st_size);
        close(out);
    }
    return result;
}

int fdatasync(int fd) { return record("fdatasync", fd); }

int fsync(int fd) { return record("fsync", fd); }

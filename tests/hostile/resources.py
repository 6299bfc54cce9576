"""Too much of everything: processes, memory, disk, descriptors, environment, depth."""

from tests.hostile.behaviour import Behaviour, Ends

AMID_NOISE = r"(?s)/work/here\n.*kept\n.*text\n"  # of what goes on in the background
ANY = (Ends.EXIT, Ends.TIMEOUT, Ends.SHELL_LOST)

RESOURCES = (
    Behaviour("fork bomb", "b() { b | b & }; b; sleep 1", ANY, timeout_s=3, patience=4, then_shows=AMID_NOISE),
    Behaviour(
        "fork bomb that leaves its session and group",
        "printf '#!/bin/sh\\nwhile :; do setsid /work/bomb & done' > /work/bomb; chmod +x /work/bomb; /work/bomb",
        ANY, timeout_s=2, patience=4, then_shows=AMID_NOISE,
    ),
    Behaviour(
        "hundreds of processes",
        "perl -e 'for (1..500) { my $p = fork // last; exec qw(sleep 60) if !$p; push @p, $p } "
        "print scalar(@p), qq( $!\\n); kill KILL => @p'",
        shows=r"\A[4-6]\d Resource temporarily unavailable\n\Z",
    ),
    Behaviour(
        "zombies", "perl -e 'for (1..500) { my $p = fork; exit if defined $p && !$p } sleep 60'",
        (Ends.TIMEOUT, Ends.SHELL_LOST), timeout_s=1, patience=2,
    ),
    Behaviour(
        "memory bomb of the shell", "a=xxxxxxxx; while :; do a=$a$a; done",
        (Ends.EXIT, Ends.SHELL_LOST), timeout_s=30,
    ),
    Behaviour(
        "memory bomb of a child", "head -c 2G /dev/zero | tail -c 2G | wc -c; echo ${PIPESTATUS[1]}", shows=r"137\n\Z"
    ),
    Behaviour(
        "memory bomb that has the supervisor killed in its stead",
        "echo 1000 > /proc/$(pgrep -f klong-supervis[o]r)/oom_score_adj; tail -c 2G /dev/zero", ANY,
    ),
    Behaviour("own protection from the memory limit", "echo -1000 > /proc/self/oom_score_adj", shows="denied"),
    Behaviour("shared memory filled", "for i in 1 2 3 4 5; do head -c 15M /dev/zero > /dev/shm/$i; done",
              exit_code=1, shows="No space left"),
    Behaviour("a file over the disk limit", "cat /dev/zero > big; wc -c < big", shows=r"\b16777216\n\Z"),
    Behaviour("/tmp filled", "cat /dev/zero > /tmp/big; wc -c < /tmp/big", shows=r"\b16777216\n\Z"),
    Behaviour(
        "thousands of open files",
        "perl -e 'while (open my $f, q(<), q(/dev/null)) { push @f, $f } print @f + 3, qq( $!\\n)'",
        shows="1024 Too many open files",
    ),
    Behaviour("a higher limit of open files", "ulimit -n 5000", exit_code=1, shows="cannot modify limit"),
    Behaviour("core dumps switched on", "ulimit -c unlimited", exit_code=1, shows="cannot modify limit"),
    Behaviour(
        "all pages that the kernel gives a user's pipes",
        "perl -e '$| = 1; while (pipe my $r, my $w) { fcntl $w, 1031, 1 << 20; push @p, $r, $w; } "
        "print qq($!\\n); sleep 99' & sleep 2",
        shows="Too many open files",
    ),
    Behaviour(
        "a directory tree deeper than a path may be long",
        "perl -e 'for (1..3000) { mkdir q(d) x 100 and chdir q(d) x 100 or die $! }'", exit_code=0, timeout_s=30,
    ),
    Behaviour(
        "a working directory deeper than a path may be long",
        "d=$(printf %0100d 0); for i in $(seq 60); do mkdir $d && cd $d || exit; done", timeout_s=30,
        then_shows=r"kept\ntext\n\Z",
    ),
    Behaviour("30,000 files", "perl -e 'for (1..30000) { open my $f, q(>), $_ or die $! }'", exit_code=0, timeout_s=30),
    Behaviour(
        "a variable longer than an argument may be", "export BIG=$(head -c 200000 /dev/zero | tr '\\0' x); ls",
        exit_code=126, shows="Argument list too long",
    ),
    Behaviour(
        "an environment larger than one may be",
        "printf -v z %01000d 0; for i in $(seq 3000); do export V$i=$z; done; ls", shows="Argument list too long",
    ),
    Behaviour(
        "an environment as large as one may be",
        "printf -v z %01000d 0; for i in $(seq 1500); do export V$i=$z; done; ls", exit_code=0,
        then="echo ${#V1500}; cd /work/here; cat file", then_shows=r"\A1000\ntext\n\Z",
    ),
    Behaviour("all of the CPU", "for i in $(seq 20); do yes > /dev/null & done; echo begun", shows="begun"),
)  # fmt: skip

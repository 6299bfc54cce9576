"""Ways out: the host's files, processes, devices, networks and privileges, and its kernel's rarer calls."""

from tests.hostile.behaviour import Behaviour

CALL = "perl -e 'print syscall({}) < 0 ? qq($!\\n) : qq(done\\n)'"  # by x86-64's numbers
NOT_PERMITTED = r"\A(?:[^\n]*Operation not permitted\n)+\Z"
UNREACHABLE = "Network is unreachable"
READ_ONLY = r"\A(?:[^\n]*Read-only file system\n)+\Z"


def _socket(name: str, family: int, kind: int, protocol: int) -> Behaviour:
    command = f"perl -e 'print socket(my $s, {family}, {kind}, {protocol}) ? qq(done\\n) : qq($!\\n)'"
    return Behaviour(name, command, shows=r"\A(Operation not permitted|Address family not supported by protocol)\n\Z")


HOST = (
    Behaviour("the main process's environment", "cat /proc/1/environ", exit_code=1, shows="Permission denied"),
    Behaviour("the main process's root", "ls /proc/1/root/", exit_code=2, shows="Permission denied"),
    Behaviour("the host's processes", "ls -d /proc/[0-9]* | wc -l", shows=r"\A\d\n\Z"),
    Behaviour("the Docker socket", "ls /run/docker.sock /var/run/docker.sock", exit_code=2, shows="cannot access"),
    Behaviour("the cloud's metadata", "echo > /dev/tcp/169.254.169.254/80", exit_code=1, shows=UNREACHABLE),
    Behaviour("the host, by its bridge", "echo > /dev/tcp/172.17.0.1/22", exit_code=1, shows=UNREACHABLE),
    Behaviour("a name server", "getent hosts pypi.org", exit_code=2),
    Behaviour("the host's abstract sockets", "cat /proc/net/unix | wc -l", shows=r"\A1\n\Z"),
    _socket("a raw socket", 2, 3, 1),
    _socket("a packet socket", 17, 3, 3),
    Behaviour("mounting", CALL.format("165, my $a = q(none), my $b = q(/work), my $c = q(tmpfs), 0, 0"),
              shows=NOT_PERMITTED),
    Behaviour("namespaces of its own", "unshare -U true; unshare -r true; unshare -n true", shows=NOT_PERMITTED),
    Behaviour("other processes' namespaces", "nsenter -t 1 -m true", exit_code=1, shows="Permission denied"),
    Behaviour("another root directory", "chroot /work true", exit_code=125, shows="Operation not permitted"),
    Behaviour("a disk of the host's", "mknod disk b 254 0; mknod disk c 1 1", exit_code=1, shows=NOT_PERMITTED),
    Behaviour("devices", "ls /dev/mem /dev/kmsg /dev/vda /dev/sda /dev/kvm /dev/fuse 2>/dev/null", exit_code=2,
              shows=r"\A\Z"),
    Behaviour("a setuid program", "mkfifo f; su < f > /dev/null 2>&1 & exec 9> f; sleep 0.2; grep Uid /proc/$!/status",
              exit_code=0, shows=r"\AUid:\t1000\t1000\t1000\t1000\n\Z"),
    Behaviour("capabilities", "grep -hE 'Cap(Prm|Eff|Bnd)|NoNewPrivs' /proc/self/status | tr -d '\\t'",
              shows=r"\ACapPrm:0{16}\nCapEff:0{16}\nCapBnd:0{16}\nNoNewPrivs:1\n\Z"),
    Behaviour("another clock", "date -s 2001-01-01", exit_code=1, shows="Operation not permitted"),
    Behaviour("the kernel's log", "dmesg", exit_code=1, shows="Operation not permitted"),
    Behaviour("the kernel's settings", "for f in kernel/core_pattern vm/drop_caches; do echo x > /proc/sys/$f; done",
              exit_code=1, shows=r"Read-only file system|Permission denied"),
    Behaviour("the kernel's keyboard", "echo b > /proc/sysrq-trigger", exit_code=1,
              shows="Read-only file system|Permission denied|No such file"),
    Behaviour("the kernel's memory", "head -c 1 /proc/kcore | wc -c", shows=r"\b0\n\Z"),
    Behaviour("higher limits", "find /sys -writable 2>/dev/null | head", shows=r"\A\Z"),
    Behaviour("system paths", "touch /bin/x /etc/x /lib/x /opt/x /sbin/x /usr/x /usr/local/bin/x", exit_code=1,
              shows=READ_ONLY),
    Behaviour("the password file", "echo root::0:0::/:/bin/sh > /etc/passwd", exit_code=1,
              shows="Read-only|Permission denied"),
    *(
        Behaviour(f"system call {name}", CALL.format(call), shows="not permitted|not implemented")
        for name, call in {
            "bpf": "321, 0, 0, 0",
            "keyctl": "250, 0, -1, 0",
            "perf_event_open": "298, 0, 0, -1, -1, 0",
            "userfaultfd": "323, 0",
            "init_module": "175, 0, 0, 0",
            "kexec_load": "246, 0, 0, 0, 0",
            "reboot": "169, 0xfee1dead, 672274793, 0, 0",
            "settimeofday": "164, 0, 0",
            "open_by_handle_at": "304, -1, 0, 0",
            "swapon": "167, my $p = q(/work/here/file), 0",
        }.items()
    ),
)  # fmt: skip

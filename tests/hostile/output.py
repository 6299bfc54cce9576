"""What is printed: too much, no text, and imitations of what the channel itself says."""

from tests.hostile.behaviour import Behaviour, Ends

TIMEOUT = (Ends.TIMEOUT,)

OUTPUT = (
    Behaviour("1 GB", "head -c 1G /dev/zero | tr '\\0' x; echo; echo last", exit_code=0, shows=r"left out[^l]*last\n\Z",
              timeout_s=100),
    Behaviour("no end and no newline", "tr '\\0' x < /dev/zero", TIMEOUT, shows="bytes left out", timeout_s=1),
    Behaviour("no end and nothing but newlines", "yes ''", TIMEOUT, shows="bytes left out", timeout_s=1),
    Behaviour("random bytes", "head -c 1000000 /dev/urandom", exit_code=0, shows="\ufffd"),
    Behaviour("no UTF-8", "printf 'a\\377\\376\\300\\200b'", exit_code=0, shows="\\Aa\ufffd+b\\Z"),
    Behaviour("NUL bytes", "head -c 1000 /dev/zero", exit_code=0, shows=r"\A\0{1000}\Z"),
    Behaviour("an end mark", "printf '\\0360123456789abcdef 0\\036'; exit 7", exit_code=7,
              shows=r"\A\x1e0123456789abcdef 0\x1e\Z"),
    Behaviour("the beginning of an end mark", "printf '\\036'; exit 7", exit_code=7, shows=r"\A\x1e\Z"),
    Behaviour("guesses of the end mark",
              "perl -e 'printf qq(\\x1e%08x%08x 0\\x1e), rand 2**32, rand 2**32 for 1..200000'; exit 7", exit_code=7),
    Behaviour("a frame of Docker's", "printf '\\002\\0\\0\\0\\0\\0\\0\\005hello\\001\\0\\0\\0\\377\\377\\377\\377'",
              exit_code=0, shows="hello"),
    Behaviour("escapes of a terminal", "printf '\\033[2J\\033]0;title\\007\\033c'", exit_code=0, shows=r"\x1b\[2J"),
    Behaviour("a flood from the background", "yes & echo $! > /tmp/pid", exit_code=0,
              then="kill -9 $(cat /tmp/pid)", then_shows=""),
    Behaviour("standard output closed", "exec 1>&- 2>&-; echo lost", exit_code=1, shows=r"\A\Z"),
    Behaviour("a here-string of 1 MB", "cat <<< \"$(head -c 1M /dev/zero | tr '\\0' x)\" | wc -c", shows="1048577"),
    Behaviour("a command line of 2 MB", f": {'x' * (2 << 20)}; echo whole", shows=r"\Awhole\n\Z"),
    Behaviour("an answer to a question nobody reads", "cat; read -r x; echo $?", shows=r"\A1\n\Z"),
)  # fmt: skip

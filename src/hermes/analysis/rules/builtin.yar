// A few rules for what SSH attackers bring everywhere. Yours go to analysis.yara_rules.

import "elf"

rule ssh_public_key : persistence
{
    meta:
        description = "text with an SSH public key, as authorized_keys has it"
    strings:
        $rsa = "ssh-rsa AAAAB3NzaC1yc2E"
        $ed25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5"
        $ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY"
    condition:
        filesize < 64KB and any of them and uint32(0) != 0x464c457f
}

rule downloader_script : downloader
{
    meta:
        description = "shell script that fetches a program, makes it executable and runs it"
    strings:
        $fetch = /\b(wget|curl|tftp|ftpget|lwp-download|fetch)[ \t][^\n;|&]{0,200}([a-z]+:\/\/|[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3})/ nocase
        $mode = /\bchmod[ \t]+(\+x|[ugoa]+\+r?w?x|0?[0-7]{3})\b/
        $run = /(^|[\n;&|][ \t]*)(\.\/|sh[ \t]|bash[ \t]|nohup[ \t]|\/tmp\/|\/var\/tmp\/|\/dev\/shm\/)/
    condition:
        filesize < 256KB and uint32(0) != 0x464c457f and $fetch and $mode and $run
}

rule downloader_many_architectures : downloader botnet
{
    meta:
        description = "shell script that tries one program after another for many processor architectures"
    strings:
        $fetch = /\b(wget|curl|tftp|ftpget)\b/
        $mips = /\bmips(el|le)?\b|[._]mips(el|le)?\b|mpsl/
        $arm = /\barm(v?[4-8][a-z]*)?\b|[._]arm[4-7]?\b/
        $x86 = /\b(x86(_64)?|i[3-6]86|amd64)\b|[._]x86\b/
        $other = /\b(ppc|powerpc|sh4|sparc|spc|m68k|arc)\b|[._](ppc|sh4|spc|m68k|arc)\b/
    condition:
        filesize < 256KB and uint32(0) != 0x464c457f and $fetch and 3 of ($mips, $arm, $x86, $other)
}

rule cryptocurrency_miner : miner
{
    meta:
        description = "program or configuration that mines cryptocurrency"
    strings:
        $stratum = /stratum\+(tcp|ssl|tls):\/\// nocase
        $randomx = "randomx" nocase
        $donate = "donate-level"
        $nicehash = "nicehash" nocase
        $cryptonight = "cryptonight" nocase
        $xmrig = "xmrig" nocase
        $submit = "\"mining.submit\""
        $job = "\"job_id\""
        $pools = /\"pools\"\s*:\s*\[/
    condition:
        2 of them
}

rule irc_bot_script : botnet
{
    meta:
        description = "Perl or Python script that speaks IRC and runs what it is told"
    strings:
        $perl = /^#!\s*\S*perl|use\s+(IO::Socket|Socket)\b/
        $python = /^#!\s*\S*python|import\s+socket\b/
        $privmsg = "PRIVMSG"
        $join = /\bJOIN\b/
        $nick = /\bNICK\b/
        $shell = /`\$|system\s*\(|os\.popen|subprocess\.|exec\s*\(/
    condition:
        filesize < 1MB and ($perl or $python) and $privmsg and $join and $nick and $shell
}

rule ddos_bot : botnet ddos
{
    meta:
        description = "ELF program with the commands of several kinds of flood"
    strings:
        $a = /\b(udp|tcp|syn|ack|std|vse|xmas|dns|http|greip|greeth|stomp)[ _-]?(flood|plain)\b/ nocase
        $b = "HTTPFLOOD" nocase
        $c = "UDPRAW"
        $d = "/dev/watchdog"
        $e = "/dev/misc/watchdog"
        $f = "busybox" nocase
        $g = "TSource Engine Query"
        $h = "/proc/net/tcp"
    condition:
        uint32(0) == 0x464c457f and 3 of them
}

rule ssh_scanner : scanner
{
    meta:
        description = "ELF program that guesses SSH passwords"
    strings:
        $lib1 = "libssh" nocase
        $lib2 = "golang.org/x/crypto/ssh"
        $lib3 = "SSH-2.0-Go"
        $list1 = "root:root"
        $list2 = "admin:admin"
        $list3 = "pass.txt"
        $list4 = "bios.txt"
        $list5 = "mfu.txt"
        $list6 = "vuln.txt"
    condition:
        uint32(0) == 0x464c457f and any of ($lib*) and any of ($list*)
}

rule packed_with_upx : packed
{
    meta:
        description = "ELF program packed with UPX, also where its marks were altered only in part"
    strings:
        $mark = "UPX!"
        $info = "$Info: This file is packed with the UPX"
        $stub = "$Id: UPX "
    condition:
        uint32(0) == 0x464c457f and any of them
}

rule static_stripped_program_for_another_machine : foreign
{
    meta:
        description = "ELF program for a machine that embedded devices have"
    condition:
        elf.type == elf.ET_EXEC and (elf.machine == elf.EM_MIPS or elf.machine == elf.EM_ARM or elf.machine == elf.EM_PPC
            or elf.machine == 42 or elf.machine == elf.EM_SPARC or elf.machine == elf.EM_68K)
}

rule reverse_shell_script : backdoor
{
    meta:
        description = "text that connects a shell to an address"
    strings:
        $dev = /\/dev\/(tcp|udp)\/[0-9A-Za-z.$_{}-]{4,80}\/[0-9$]/
        $nc = /\bnc(at)?\b[^\n]{0,80}\s-e\s*\/bin\/(ba|da)?sh/
        $mkfifo = /mkfifo[^\n]{0,100}\|\s*\/bin\/(ba)?sh[^\n]{0,60}\|\s*nc/
        $python = /socket\.socket[^\n]{0,300}(dup2|pty\.spawn)/
        $perl = /use Socket[^\n]{0,400}exec\s*\{?"\/bin\/(ba)?sh/
    condition:
        filesize < 1MB and uint32(0) != 0x464c457f and any of them
}

rule kernel_module_rootkit : rootkit
{
    meta:
        description = "kernel module that changes the table of system calls, or hides itself"
    strings:
        $module = "__this_module"
        $table = "sys_call_table"
        $lookup = "kallsyms_lookup_name"
        $hook = "getdents64"
        $ftrace = "ftrace_set_filter_ip"
    condition:
        uint32(0) == 0x464c457f and $module and 2 of ($table, $lookup, $hook, $ftrace)
}

rule preloaded_rootkit : rootkit
{
    meta:
        description = "shared library that hides files or processes from programs it is preloaded into"
    strings:
        $preload = "ld.so.preload"
        $dlsym = "dlsym"
        $readdir = "readdir"
        $stat = "__xstat"
        $hidden = /\/proc\/(self\/fd\/)?%|\/proc\/%d/
    condition:
        filesize < 2MB and uint32(0) == 0x464c457f and elf.type == elf.ET_DYN and $preload and $dlsym and ($readdir or $stat) and $hidden
}

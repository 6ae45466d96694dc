// The programs that bind agents to their addresses. Only helpers that Linux 5.10 has, but for bpf_get_netns_cookie in
// packet programs: package bind leaves that call out where it is not there.
// SPDX-License-Identifier: Apache-2.0
#include "socket.h"
#include "packet.h"

char _license[] SEC("license") = "Apache-2.0";

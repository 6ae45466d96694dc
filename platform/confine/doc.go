// Package confine runs a command that cannot leave the cgroup that its caller is in, as far as the kernel can see to that.
//
// The command and what it starts gain no privileges, keep few of root's, and see cgroups and the kernel's settings
// read-only. From Linux 6.12 on they cannot look into, change or signal processes that are not of the command either.
// A command of root is not kept from files that are root's, and any command may ask a process elsewhere to do its work,
// which is not the agent's then.
package confine

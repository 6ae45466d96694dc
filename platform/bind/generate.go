package bind

// The objects are in the tree: whoever builds the daemon needs no compiler for them.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -type configuration -type phase -type claim -type past -type agent -type addr -type destination -type ports -type port_range -type endpoint -output-stem programs kernel bpf/bind.c -- -O2 -g -Wall -Werror -I/usr/include/x86_64-linux-gnu

// Package segment is who may talk to whom, and why: labels, segments, rules, and the verdicts that follow from
// them. It is pure: no I/O, no clock (time is an argument), no goroutine.
//
// A [Policy] selects agents into segments by their labels. A [Rule] lets agents of one segment open ports of agents
// of another; replies pass, new connections the other way do not, and what no rule allows is denied.
//
// There are two evaluators. [Policy.Decide] walks the rules and is obviously right; [Compile] makes the [Ruleset]
// that a host's kernel gets. Tests hold them against each other.
package segment

package platform

import (
	"slices"
	"strconv"
	"strings"
)

// unquote undoes what iptables does to odd values when it prints them.
var unquote = strings.NewReplacer(`"`, "", `\\`, `\`)

// ruleOptions splits a rule, as `iptables -S` prints it, into its options with their values: "! -i lo" is one.
// Rules of ours have no blanks inside quotes; of others it is enough that equal ones give equal options.
func ruleOptions(rule string) []string {
	var out []string
	negated := false
	for _, word := range strings.Fields(rule) {
		word = unquote.Replace(word)
		switch {
		case word == "":
			continue
		case word == "!":
			negated = true
			continue
		case negated:
			word = "! " + word
			out = append(out, word)
		case strings.HasPrefix(word, "-") || len(out) == 0:
			out = append(out, word)
		default:
			out[len(out)-1] += " " + word
		}
		negated = false
	}
	return out
}

// canonical makes rules equal that iptables programs of different versions print in different order.
func canonical(rule string) string {
	options := ruleOptions(rule)
	options = slices.DeleteFunc(options, func(o string) bool { return strings.HasPrefix(o, "-m ") })
	slices.Sort(options)
	return strings.Join(options, " ")
}

// callsOurs reports whether a rule jumps to a chain of ours.
func callsOurs(rule string) bool {
	return slices.ContainsFunc(ruleOptions(rule), func(o string) bool {
		return strings.HasPrefix(o, "-j "+chainPrefix) || strings.HasPrefix(o, "-g "+chainPrefix)
	})
}

// parseCounter finds out for which reason a rule of ours drops and how many packets it did.
func parseCounter(rule string) (reason string, packets uint64, ok bool) {
	var comment, counter string
	for _, o := range ruleOptions(rule) {
		if v, found := strings.CutPrefix(o, "--comment "+commentPrefix); found {
			comment = v
		}
		if v, found := strings.CutPrefix(o, "-c "); found {
			counter, _, _ = strings.Cut(v, " ")
		}
	}
	packets, err := strconv.ParseUint(counter, 10, 64)
	if comment == "" || err != nil {
		return "", 0, false
	}
	return comment, packets, true
}

package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// buildVersion is set by the linker: -X main.buildVersion=v1.2.3.
var buildVersion string

// version is what was built: the linker's word, or the commit that the Go tools recorded.
func version() string {
	if buildVersion != "" {
		return buildVersion
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return info.Main.Version
}

func (a *app) newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Version of this program", Example: "  bulkhead version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			answer := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
			}{version(), runtime.Version()}
			return a.answer(answer, func(t *table) { t.line("bulkhead %s (%s)", answer.Version, answer.Go) })
		},
	}
}

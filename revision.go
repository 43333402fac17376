package floatip

import "runtime/debug"

// revision is set by the linker (see the Makefile): what git describe says of the tree.
var revision string

// Revision says what a binary was built from, for the first line of its log: what the linker was told, else the commit
// that the go command recorded, else "unknown".
func Revision() string {
	if revision != "" {
		return revision
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

package cloudinit

import (
	"os"
	"path/filepath"
	"testing"
)

// testFile is the file that the tests add.
var testFile = File{Path: "/etc/floatip/floating-ip", Content: "192.168.100.50\n"}

// extended are the user data under testdata that get the file.
var extended = []string{
	"empty",
	"config", "config-no-newline", "config-crlf", "config-header-only", "config-indented", "config-utf8", "config-anchors",
	"list", "list-indented", "list-keep",
	"list-flow", "list-empty", "list-anchor", "list-alias", "list-twice", "merge-key", "flow", "documents",
	"jinja", "script", "script-no-newline", "script-utf8", "script-boundary", "include", "include-once", "boothook",
	"archive", "jsonp", "part-handler",
	"multipart", "multipart-crlf", "multipart-nested",
}

// leftAlone are the user data under testdata that stay as they are.
var leftAlone = map[string]Reason{
	"gzip":            ReasonGzip,
	"hi":              ReasonUnknown,
	"ignition":        ReasonIgnition,
	"toml":            ReasonUnknown,
	"yaml-no-header":  ReasonUnknown,
	"powershell":      ReasonUnknown,
	"config-other":    ReasonUnknown,
	"not-utf8":        ReasonNoText,
	"config-broken":   ReasonBadYAML,
	"config-list":     ReasonNoMapping,
	"list-null":       ReasonNoList,
	"mime-single":     ReasonBadMIME,
	"mime-no-version": ReasonBadMIME,
	"multipart-open":  ReasonBadMIME,
	"own-file":        ReasonOwnFile,
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

package cloudinit

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// format is how user data are extended. A format that becomes the first part of a message is that part's content type.
type format string

const (
	formatEmpty     format = ""
	formatConfig    format = "text/cloud-config"
	formatMultipart format = "multipart"
	formatOther     format = "other"
)

// beginnings tell formats apart, the longer ones first (cloudinit/handlers/__init__.py).
var beginnings = []struct {
	text   string
	format format
}{
	{"#cloud-config-archive", "text/cloud-config-archive"},
	{"#cloud-config-jsonp", "text/cloud-config-jsonp"},
	{"## template: jinja", "text/jinja2"},
	{"#cloud-boothook", "text/cloud-boothook"},
	{"#include-once", "text/x-include-once-url"},
	{"#part-handler", "text/part-handler"},
	{"#include", "text/x-include-url"},
	{"#!", "text/x-shellscript"},
}

// gzipMagic begins a gzip file (RFC 1952 section 2.3.1).
var gzipMagic = []byte{0x1f, 0x8b}

// detect finds out the format of user data, and for formatOther the reason of leaving them alone. Like cloud-init it
// skips white space at the beginning and takes upper case for lower case.
func detect(userData []byte) (format, Reason) {
	if bytes.HasPrefix(userData, gzipMagic) {
		return formatOther, ReasonGzip
	}
	if !utf8.Valid(userData) || bytes.IndexByte(userData, 0) >= 0 {
		return formatOther, ReasonNoText
	}
	text := strings.ToLower(strings.TrimSpace(string(userData)))
	if text == "" {
		return formatEmpty, ReasonNone
	}
	for _, b := range beginnings {
		if strings.HasPrefix(text, b.text) {
			return b.format, ReasonNone
		}
	}
	switch {
	case isConfig(text):
		return formatConfig, ReasonNone
	case strings.HasPrefix(text, "content-type:"), strings.HasPrefix(text, "mime-version:"):
		return formatMultipart, ReasonNone
	case strings.HasPrefix(text, "{"):
		return formatOther, ReasonIgnition
	}
	return formatOther, ReasonUnknown
}

// isConfig wants the header alone in its line. cloud-init is content if the line begins so, but "#cloud-config-x" is
// rather a format of a version to come.
func isConfig(text string) bool {
	rest, found := strings.CutPrefix(text, header)
	return found && (rest == "" || strings.ContainsAny(rest[:1], " \t\r\n"))
}

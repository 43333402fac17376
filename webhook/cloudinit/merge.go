package cloudinit

import (
	"bytes"
	"strconv"
)

// MaxSize is how many bytes of user data KubeVirt lets through, counted after base64 is decoded
// (pkg/virt-api/webhooks/validating-webhook/admitters/vmi-create-admitter.go, cloudInitUserMaxLen).
const MaxSize = 2048

// File is what shall appear in the guest, owned by root and readable by all.
type File struct {
	// Path is absolute. It marks user data that have the file already.
	Path string
	// Content is the whole file.
	Content string
}

// entry is the file as a block sequence entry of write_files, indented by spaces.
func (f File) entry(indent string) string {
	return indent + "- path: " + strconv.QuoteToASCII(f.Path) + "\n" +
		indent + "  content: " + f.content() + "\n"
}

// content is the file's content as a double-quoted YAML scalar. An unquoted address of eight small groups would be a
// number in base sixty (YAML 1.1, which cloud-init's parser speaks). Go's escapes are YAML's (YAML 1.2 section 5.7).
func (f File) content() string { return strconv.QuoteToASCII(f.Content) }

// config is the file as a #cloud-config of its own.
func (f File) config() string { return header + "\n" + writeFiles + ":\n" + f.entry("") }

const (
	header     = "#cloud-config"
	writeFiles = "write_files"
)

// Reason says why user data were left alone. It completes the sentence "the user data have no hint: ...".
type Reason string

// Reasons of leaving user data alone.
const (
	// ReasonNone: nothing was skipped.
	ReasonNone       Reason = ""
	ReasonOwnFile    Reason = "they name the hint's file themselves"
	ReasonTooLong    Reason = "with it they would be longer than 2048 bytes"
	ReasonGzip       Reason = "they are compressed"
	ReasonIgnition   Reason = "they are JSON, for instance Ignition"
	ReasonUnknown    Reason = "they are in no format of cloud-init"
	ReasonNoText     Reason = "they are not UTF-8 text"
	ReasonBadYAML    Reason = "their YAML cannot be read"
	ReasonNoMapping  Reason = "their YAML is no mapping"
	ReasonNoList     Reason = "their write_files is no list"
	ReasonBadMIME    Reason = "their MIME message cannot be read"
	ReasonNoBoundary Reason = "they leave no room for a MIME boundary"
)

// Merge returns userData with the file added. It returns userData itself and a Reason if it leaves them alone, and
// userData itself without a Reason if they have the very file already. The result is never longer than MaxSize, unless
// userData are.
func Merge(userData []byte, file File) (merged []byte, skipped Reason) {
	if bytes.Contains(userData, []byte(file.Path)) {
		return userData, marked(userData, file)
	}
	if len(userData) > MaxSize {
		return userData, ReasonTooLong
	}
	merged, skipped = mergeFormat(userData, file)
	switch {
	case skipped != ReasonNone:
		return userData, skipped
	case len(merged) > MaxSize:
		return userData, ReasonTooLong
	}
	return merged, ReasonNone
}

// marked tells floatip's own entry, which an earlier call for the same request made, from a file of the user's.
func marked(userData []byte, file File) Reason {
	if bytes.Contains(userData, []byte("content: "+file.content())) {
		return ReasonNone
	}
	return ReasonOwnFile
}

func mergeFormat(userData []byte, file File) ([]byte, Reason) {
	switch f, reason := detect(userData); f {
	case formatEmpty:
		return []byte(file.config()), ReasonNone
	case formatConfig:
		return mergeConfig(userData, file)
	case formatMultipart:
		return addPart(userData, file)
	case formatOther:
		return nil, reason
	default:
		return wrap(userData, string(f), file)
	}
}

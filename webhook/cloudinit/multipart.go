package cloudinit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"reflect"
	"strconv"
	"strings"
)

// mergeType makes cloud-init append floatip's entry to the write_files of earlier parts: by default the list of a later
// part replaces theirs (cloudinit/handlers/cloud_config.py, DEF_MERGERS).
const mergeType = "list(append)+dict(recurse_list)+str()"

// part is the file as a part of a message, without the boundary.
func (f File) part() string {
	return "Content-Type: " + string(formatConfig) + "\nMerge-Type: " + mergeType + "\n\n" + f.config()
}

// wrap makes a message of userData, as its first part, and the file. The message is as short as it can be: MaxSize is
// little.
func wrap(userData []byte, contentType string, file File) ([]byte, Reason) {
	boundary, ok := unusedBoundary(userData)
	if !ok {
		return nil, ReasonNoBoundary
	}
	head := "Content-Type: " + contentType + "\n"
	body := string(userData)
	if !isASCII(userData) {
		// Python's email package, by which cloud-init reads messages, damages text beyond ASCII that is not encoded.
		head += "Content-Transfer-Encoding: base64\n"
		body = base64.StdEncoding.EncodeToString(userData)
	}
	delimiter := "--" + boundary
	return []byte("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=" + boundary + "\n\n" +
		delimiter + "\n" + head + "\n" + body + "\n" +
		delimiter + "\n" + file.part() +
		delimiter + "--\n"), ReasonNone
}

// unusedBoundary returns a boundary that no line of text begins with.
func unusedBoundary(text []byte) (string, bool) {
	for n := range MaxSize {
		boundary := "floatip" + strconv.Itoa(n)
		if !bytes.Contains(text, []byte("--"+boundary)) {
			return boundary, true
		}
	}
	return "", false
}

func isASCII(text []byte) bool {
	for _, c := range text {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// addPart adds the file to a message: before its closing delimiter (RFC 2046 section 5.1.1), so that every byte of the
// message stays.
func addPart(userData []byte, file File) ([]byte, Reason) {
	boundary, before, err := readParts(userData)
	if err != nil {
		return nil, ReasonBadMIME
	}
	offset := bytes.LastIndex(userData, []byte("\n--"+boundary+"--")) + 1
	if offset == 0 {
		return nil, ReasonBadMIME
	}
	addition := "--" + boundary + "\n" + file.part()
	if offset > 1 && userData[offset-2] == '\r' {
		addition = strings.ReplaceAll(addition, "\n", "\r\n")
	}
	merged := insert(userData, offset, addition)
	_, after, err := readParts(merged)
	if err != nil || len(after) != len(before)+1 || !reflect.DeepEqual(after[:len(before)], before) {
		return nil, ReasonBadMIME
	}
	return merged, ReasonNone
}

// part is one part of a message as it stands there: its transfer encoding is not decoded.
type part struct {
	header textproto.MIMEHeader
	body   string
}

var errNotMultipart = errors.New("not a MIME multipart message")

// readParts returns the boundary and the parts of a message.
func readParts(message []byte) (boundary string, parts []part, err error) {
	m, err := mail.ReadMessage(bytes.NewReader(message))
	if err != nil {
		return "", nil, err
	}
	mediaType, parameters, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		return "", nil, err
	}
	// Without MIME-Version cloud-init takes a message for plain text (cloudinit/user_data.py, convert_string).
	boundary = parameters["boundary"]
	if !strings.HasPrefix(mediaType, "multipart/") || boundary == "" || m.Header.Get("Mime-Version") == "" {
		return "", nil, errNotMultipart
	}
	reader := multipart.NewReader(m.Body, boundary)
	for {
		p, err := reader.NextRawPart()
		if errors.Is(err, io.EOF) {
			return boundary, parts, nil
		}
		if err != nil {
			return "", nil, err
		}
		body, err := io.ReadAll(p)
		if err != nil {
			return "", nil, err
		}
		parts = append(parts, part{header: p.Header, body: string(body)})
	}
}

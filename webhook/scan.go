package webhook

import "bytes"

// topLevel finds the value of a field of the JSON object in raw, without decoding the rest: a VM may be a mebibyte of
// which floatip reads a few annotations. The value is nil if there is no such field. It returns false where it is not
// sure: the field comes twice, a key is escaped, or raw is no object. Then the whole has to be decoded.
//
// raw is part of a request that was decoded before, so it is known to be JSON, and values are only skipped.
func topLevel(raw []byte, field string) (value []byte, sure bool) {
	s := scanner{raw: bytes.TrimSpace(raw)}
	if !s.take('{') {
		return nil, false
	}
	for !s.take('}') {
		key, ok := s.key()
		if !ok {
			return nil, false
		}
		s.space()
		from := s.at
		if !s.skip() {
			return nil, false
		}
		if string(key) == field {
			if value != nil {
				return nil, false
			}
			value = s.raw[from:s.at]
		}
		if !s.take(',') && !s.peek('}') {
			return nil, false
		}
	}
	return value, s.at == len(s.raw)
}

// scanner walks over JSON (RFC 8259).
type scanner struct {
	raw []byte
	at  int
}

func (s *scanner) space() {
	for s.at < len(s.raw) && (s.raw[s.at] == ' ' || s.raw[s.at] == '\t' || s.raw[s.at] == '\n' || s.raw[s.at] == '\r') {
		s.at++
	}
}

func (s *scanner) peek(c byte) bool {
	s.space()
	return s.at < len(s.raw) && s.raw[s.at] == c
}

func (s *scanner) take(c byte) bool {
	there := s.peek(c)
	if there {
		s.at++
	}
	return there
}

// key takes a key and its colon, and returns false for one with an escape.
func (s *scanner) key() ([]byte, bool) {
	if !s.take('"') {
		return nil, false
	}
	end := bytes.IndexByte(s.raw[s.at:], '"')
	if end < 0 {
		return nil, false
	}
	key := s.raw[s.at : s.at+end]
	s.at += end + 1
	return key, !bytes.ContainsRune(key, '\\') && s.take(':')
}

// skip passes one value.
func (s *scanner) skip() bool {
	depth := 0
	for s.at < len(s.raw) {
		switch c := s.raw[s.at]; c {
		case '"':
			if !s.skipString() {
				return false
			}
			if depth == 0 {
				return true
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return s.raw[s.at-1] != ':' // a number, true, false or null ends before
			}
			if depth--; depth == 0 {
				s.at++
				return true
			}
		case ',':
			if depth == 0 {
				return true
			}
		}
		s.at++
	}
	return false
}

func (s *scanner) skipString() bool {
	for s.at++; s.at < len(s.raw); s.at++ {
		switch s.raw[s.at] {
		case '"':
			s.at++
			return true
		case '\\':
			s.at++
		}
	}
	return false
}

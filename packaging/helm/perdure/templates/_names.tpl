{{- define "perdure.name" -}}
{{- if contains "perdure" .Release.Name }}{{ .Release.Name | trunc 48 | trimSuffix "-" }}{{ else }}{{ printf "%s-perdure" .Release.Name | trunc 48 | trimSuffix "-" }}{{ end -}}
{{- end -}}
{{- define "perdure.cluster.name" -}}
{{- $name := include "perdure.name" . }}
{{- if eq $name .Release.Namespace }}{{ $name }}{{ else }}{{ $name }}-{{ .Release.Namespace }}{{ end -}}
{{- end -}}
{{- define "perdure.selector" -}}
app.kubernetes.io/name: perdure
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}
{{- define "perdure.labels" -}}
app.kubernetes.io/name: perdure
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}
{{- define "perdure.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- define "perdure.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "perdure.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end -}}
{{- end -}}
{{- define "perdure.attempt.account" -}}
{{- if .Values.attempts.serviceAccount.name }}{{ .Values.attempts.serviceAccount.name }}{{ else if and .Values.attempts.serviceAccount.create (not .Values.clusterWide) }}{{ include "perdure.name" . }}-attempt{{ end -}}
{{- end -}}
